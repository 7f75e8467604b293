"""Processor seconds of loading a model with the sums of all its bytes, which tell a changed byte, and without them.

python benchmarks/digests.py --checkpoint_dir checkpoints/HuggingFaceTB/SmolLM2-135M-Instruct

Both are measured in turn in one process, the file in the system's cache, which is where the sums cost the most: what
comes from a disk takes longer, and the sums do not.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from unittest.mock import patch

import torch

from lit_gpt.checkpoints.base import load_base
from lit_gpt.fabric import make_fabric
from lit_gpt.files import sums
from lit_gpt.files.sums import sums_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    print(f"{args.checkpoint_dir.name}, {os.cpu_count()} cores, torch {torch.__version__}")
    fabric = make_fabric()
    found: dict[str, list[float]] = {"with the sums": [], "without": []}
    for n in range(args.rounds + 1):
        for name, made in (("with the sums", sums_of), ("without", without_sums)):
            with patch.object(sums, "sums_of", made):
                before = time.process_time()
                load_base(fabric, args.checkpoint_dir)
                if n:  # the first one fills the cache
                    found[name].append(time.process_time() - before)
    for name, seconds in found.items():
        print(f"{name:14} {statistics.median(seconds):.3f} s in the median, {min(seconds):.3f} to {max(seconds):.3f}")
    ratios = [a / b for a, b in zip(*found.values(), strict=True)]
    print(f"the sums cost {statistics.median(ratios) - 1:.1%} of loading without them, in the median")


def without_sums(x: torch.Tensor, part: tuple[int, int] = (0, 1)) -> bytes:
    """Returns nothing, at once."""
    return b""


if __name__ == "__main__":
    main()
