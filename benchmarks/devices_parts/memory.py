"""The memory of processes that load a part of a model each: kept by the plan, held, at most, and of the file."""

import json
from collections.abc import Callable
from pathlib import Path

_SCRIPT = Path(__file__).parent / "loaded.py"
_MB = 1e6


def print_memory(run: Callable[[list], str], torchrun: list, checkpoint_dir: Path, folder: Path) -> None:
    """Prints a line for each process of 1, 2 and 4, without quantization and in int8."""
    size = (checkpoint_dir / "lit_model.pth").stat().st_size / _MB
    print(f"MB of each process; lit_model.pth has {size:.0f}\n{'':22}plan  held  at most  of the file")
    for quantize in ("none", "int8"):
        for n in (1, 2, 4):
            run([*torchrun, n, _SCRIPT, checkpoint_dir, quantize, folder])
            for rank in range(n):
                found = json.loads((folder / f"loaded-{rank}.json").read_text())
                plan, held, peak, touched = (found[key] / _MB for key in ("plan", "held", "peak", "touched"))
                name = f"{quantize:5} {rank + 1} of {n}"
                off = f"held {held / plan - 1:+.0%} of the plan"
                print(f"{name:18}{plan:8.0f}{held:6.0f}{peak:9.0f}{touched:13.0f}   {off}", flush=True)
