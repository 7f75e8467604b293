"""Whether our step costs as much a token with more data, and in longer packed rows: real tokens a second, in turn.

python benchmarks/train.py --folder /tmp/train --peers ours --rounds 1 --data rows.json      puts model and rows there
python benchmarks/scaling.py --folder /tmp/train [--precision bf16-true] [--rounds 5]

The same 32 short documents each time, by the library's own loop, in one process and in an order that turns from round
to round: a small machine differs more from minute to minute than these do, so that the ratios of each round count.
Prefixes are not shared: with them, longer rows cost less a token.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from train import where
from train_parts.job import Job
from train_parts.record import peak_gb

CASES: dict[str, dict[str, Any]] = {
    "packed to 512": {},
    "4 times the data": {"repeats": 4},
    "packed to 1,024": {"max_seq_length": 1024},
    "packed to 2,048": {"max_seq_length": 2048},
}
"""What is run -> what its job has otherwise."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="what benchmarks/train.py filled")
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-true"))
    parser.add_argument("--targets", default="qv", choices=("qv", "all"), help="layers with LoRA")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(where().replace("train.py", "scaling.py", 1), flush=True)
    print(f"LoRA r 8 on {args.targets}, {args.precision}; real tokens a second, and the most memory so far in GB\n")
    job = Job(args.folder, args.precision, args.targets, n_rows=32)
    rounds = measured(job, args.rounds)
    first = next(iter(CASES))
    print(f"\nmedians, and those of the ratios to {first!r} of the same round")
    for name in CASES:
        rate = statistics.median(rates[name] for rates in rounds)
        ratio = statistics.median(rates[name] / rates[first] for rates in rounds)
        print(f"{name:26}{rate:9.1f}{ratio:8.3f}")


def measured(job: Job, n_rounds: int) -> list[dict[str, float]]:
    """Tokens a second of each case in each round; prints them."""
    from train_parts.ours_run import adapted, fitted

    fabric, model = adapted(job)
    fitted(fabric, model, job, share_prefixes=False)  # warms up
    rounds = []
    for n in range(n_rounds):
        rates = {}
        for name in [*CASES][n % len(CASES) :] + [*CASES][: n % len(CASES)]:
            record = fitted(fabric, model, replace(job, **CASES[name]), share_prefixes=False)
            rates[name] = record.figures().tokens_per_sec
            print(f"{n + 1:<4}{name:22}{rates[name]:9.1f}{peak_gb():8.2f}", flush=True)
        rounds.append(rates)
    return rounds


if __name__ == "__main__":
    main()
