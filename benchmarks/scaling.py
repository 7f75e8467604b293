"""Whether our step costs as much a token with more data, and in longer packed rows: real tokens a second, in turn.

python benchmarks/train.py --folder /tmp/train --peers ours --rounds 1 --data rows.json      puts model and rows there
python benchmarks/scaling.py --folder /tmp/train [--precision bf16-true] [--rounds 3]

The same short documents each time. Each run is a process of its own; the order turns from round to round.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from train import run_child_of, where
from train_parts.job import Job
from train_parts.record import Figures, heard

CASES: dict[str, dict[str, int]] = {
    "64 rows, packed to 512": {},
    "4 times the data": {"repeats": 4},
    "packed to 1,024": {"max_seq_length": 1024},
    "packed to 2,048": {"max_seq_length": 2048},
}
"""What is run -> what its job has otherwise."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="what benchmarks/train.py filled")
    parser.add_argument("--precision", default="bf16-true", choices=("32-true", "bf16-true"))
    parser.add_argument("--targets", default="qv", choices=("qv", "all"), help="layers with LoRA")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        from train_parts.ours_run import run

        run(Job(args.folder, args.precision, args.targets, **args.child))
        return
    print(where().replace("train.py", "scaling.py", 1), flush=True)
    print(f"LoRA r 8 on {args.targets}, {args.precision}; real tokens a second, and the peak of memory in GB\n")
    rates: dict[str, list[float]] = {name: [] for name in CASES}
    for n in range(args.rounds):
        for name in [*CASES][n % len(CASES) :] + [*CASES][: n % len(CASES)]:
            figures = measured(args, CASES[name])
            rates[name].append(figures.tokens_per_sec)
            print(f"{n + 1:<4}{name:26}{figures.tokens_per_sec:9.1f}{figures.peak_gb:8.2f}", flush=True)
    first = statistics.median(next(iter(rates.values())))
    print("\nmedians, and relative to the first one")
    for name, found in rates.items():
        print(f"{name:30}{statistics.median(found):9.1f}{statistics.median(found) / first:8.2f}")


def measured(args: argparse.Namespace, otherwise: dict[str, int]) -> Figures:
    """One run in a process of its own."""
    flags = ["--folder", args.folder, "--precision", args.precision, "--targets", args.targets]
    done = run_child_of(__file__, *flags, "--child", json.dumps(otherwise))
    figures = heard(done.stdout)
    if done.returncode or figures is None:
        sys.exit(f"error: {otherwise} failed\n{done.stderr[-2000:]}")
    return figures


if __name__ == "__main__":
    main()
