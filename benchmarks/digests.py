"""Seconds of loading a model with the sums of all its bytes, which tell a changed byte, and without them.

python benchmarks/digests.py --checkpoint_dir checkpoints/HuggingFaceTB/SmolLM2-135M-Instruct

Both are measured in turn in one process, by the processor's time and by the clock, the file in the system's cache,
which is where the sums cost the most; `--from_disk` has it read from there. What a load took is given back to the
system before the next one, which then waits for fresh memory as a program that loads once does.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from unittest.mock import patch

import torch

from lit_gpt.args.folders import WEIGHTS
from lit_gpt.checkpoints.base import load_base
from lit_gpt.fabric import make_fabric
from lit_gpt.files import sums
from lit_gpt.resources import return_freed_memory

_NO_SUMS = sums._Sums(None, torch.zeros(0, dtype=torch.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--from_disk", action="store_true", help="drop the file from the system's cache before each")
    args = parser.parse_args()
    print(f"{args.checkpoint_dir.name}, {os.cpu_count()} cores, torch {torch.__version__}")
    fabric, summed = make_fabric(), sums._summed
    kinds, clocks = ("with the sums", "without"), {"processor": time.process_time, "clock": time.perf_counter}
    found: dict[tuple[str, str], list[float]] = {(kind, clock): [] for clock in clocks for kind in kinds}
    for n in range(args.rounds + 1):
        for kind, made in zip(kinds, (summed, without_sums), strict=True):
            with patch.object(sums, "_summed", made):
                if args.from_disk:
                    drop_from_cache(args.checkpoint_dir / WEIGHTS)
                before = [clock() for clock in clocks.values()]
                load_base(fabric, args.checkpoint_dir)
                taken = [clock() - started for clock, started in zip(clocks.values(), before, strict=True)]
                return_freed_memory()
                for name, seconds in zip(clocks, taken, strict=True):
                    found[kind, name] += [seconds] if n else []  # the first one fills the cache
    for (kind, clock), times in found.items():
        shown = f"{statistics.median(times):.3f} s in the median, {min(times):.3f} to {max(times):.3f}"
        print(f"{clock:9} {kind:13} {shown}")
    for clock in clocks:
        ratios = [a / b for a, b in zip(*(found[kind, clock] for kind in kinds), strict=True)]
        least = min(found[kinds[0], clock]) / min(found[kinds[1], clock])
        print(f"{clock}: the sums cost {statistics.median(ratios) - 1:.1%} in the median, {least - 1:.1%} at best")


def without_sums(x: torch.Tensor, part: tuple[int, int]) -> sums._Sums:
    """Returns no sums, at once."""
    return _NO_SUMS


def drop_from_cache(path: Path) -> None:
    """Makes the next reader of a file wait for the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
