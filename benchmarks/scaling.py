"""Whether our step costs as much a token in longer packed rows, and with more data.

python benchmarks/train.py --folder /tmp/train --peers ours --rounds 1 --data rows.json      puts model and rows there
python benchmarks/scaling.py --folder /tmp/train [--precision bf16-true] [--rounds 10]

A small machine differs by a fifth from minute to minute. So the same short documents are packed to 512, 1,024 and 2,048
tokens, a step of each takes some ten seconds, and the ratios within each round count; then whole runs of the library's
own loop over 32 samples and over 128 in turn. Prefixes are not shared: with them, longer rows cost less a token.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ours
import torch
from gpu_parts.timing import timed
from train import where
from train_parts.job import Job
from train_parts.ours_run import adapted, fitted

SIZES = (512, 1024, 2048)
"""Tokens of a forward pass."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="what benchmarks/train.py filled")
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-true"))
    parser.add_argument("--targets", default="qv", choices=("qv", "all"), help="layers with LoRA")
    parser.add_argument("--rounds", type=int, default=10, help="of steps; a third as many of runs")
    args = parser.parse_args()
    print(where().replace("train.py", "scaling.py", 1))
    print(f"LoRA r 8 on {args.targets}, {args.precision}; real tokens a second, by round", flush=True)
    job = Job(args.folder, args.precision, args.targets)
    by_length(job, args.rounds)
    by_data(job, -(-args.rounds // 3))


def by_length(job: Job, n_rounds: int) -> None:
    """Print what a step costs in forward passes of each size."""
    _, model = adapted(job)
    model.train()
    rows, device = job.material.rows[:22], torch.device("cpu")
    n_tokens = sum(len(ids) for ids, _ in rows)
    cases: dict[str, Callable[[], float]] = {}
    for size in SIZES:
        step = ours.step_runner(model, ours.batches_of(rows, size), device)
        cases[f"packed to {size:,}"] = lambda step=step: n_tokens / timed(step, device, 1)
    compare(cases, n_rounds)


def by_data(job: Job, n_rounds: int) -> None:
    """Print what a run costs over some samples, and over four times as many."""
    fabric, model = adapted(job)
    cases: dict[str, Callable[[], float]] = {}
    for name, repeats in (("32 samples", 1), ("128 samples", 4)):
        of_case = replace(job, n_rows=32, repeats=repeats)
        cases[name] = lambda of_case=of_case: fitted(fabric, model, of_case, False).figures().tokens_per_sec
    compare(cases, n_rounds)


def compare(cases: dict[str, Callable[[], float]], n_rounds: int) -> None:
    """Print the tokens a second of each case, in an order that turns, and the ratios to the first."""
    names = list(cases)
    cases[names[0]]()  # warms up
    rates: dict[str, list[float]] = {name: [] for name in names}
    for n in range(n_rounds):
        for i in range(len(names)):
            name = names[(n + i) % len(names)]
            rates[name].append(cases[name]())
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates[names[0]], strict=True)]
        print(f"\n{name:18}{' '.join(f'{rate:.0f}' for rate in found)}")
        if name != names[0]:
            print(f"{'to the first':18}{' '.join(f'{r:.2f}' for r in ratios)}   median {statistics.median(ratios):.3f}")
    print(flush=True)


if __name__ == "__main__":
    main()
