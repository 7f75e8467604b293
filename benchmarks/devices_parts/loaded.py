"""Loads a model, divided among the processes of torchrun, and writes what memory that took in this one.

Anonymous memory is what a process has for itself; of the mapped file, the pages count that it has touched.
"""

import gc
import json
import sys
import threading
import time
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lit_gpt.args import LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.args.cluster import ClusterArgs
from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.fabric import make_fabric
from lit_gpt.files import tensors
from lit_gpt.parallel.shards import n_here
from lit_gpt.parallel.team import Team
from lit_gpt.training.run.start import load_model


def main(checkpoint_dir: Path, quantize: str, out: Path) -> None:
    fabric = make_fabric("32-true", seed=0, cluster=ClusterArgs())
    team = Team.of_world()
    args = FinetuneArgs(
        "lora",
        LoRAArgs(),
        checkpoint_dir=checkpoint_dir,
        data_dir=out,
        out_dir=out,
        train=TrainArgs(),
        validation=ValidationArgs(),
        quantize=None if quantize == "none" else quantize,
    )
    if not team.is_alone:  # what the libraries take that are imported by the first division is not the weights'
        fully_shard(torch.nn.Linear(2, 2), mesh=init_device_mesh("cpu", (team.size,)))

    tensors.MAPPED_BYTES = 2**62  # what was touched stays mapped, to be counted
    before = anonymous()
    with Peaks(checkpoint_dir / "lit_model.pth") as peaks:
        model, _ = load_model(fabric, args, among=None if team.is_alone else team)
    gc.collect()
    kept = sum(n_here(p) * p.element_size() for p in model.parameters())
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    found = {"held": anonymous() - before, "peak": peaks.anonymous - before, "touched": peaks.touched}
    (out / f"loaded-{team.rank}.json").write_text(json.dumps(found | {"kept": kept, "plan": whole // team.size}))


class Peaks:
    """A thread that looks again and again how much memory this process has."""

    def __init__(self, path: Path) -> None:
        self.path, self.anonymous, self.touched, self.is_over = path, 0, 0, False
        self.thread = threading.Thread(target=self.run)

    def __enter__(self) -> "Peaks":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        self.thread.join()

    def run(self) -> None:
        while not self.is_over:
            self.anonymous = max(self.anonymous, anonymous())
            self.touched = max(self.touched, resident(self.path))
            time.sleep(0.005)


def anonymous() -> int:
    """Returns the bytes of memory that this process has for itself, shared pages by their share (PSS)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "SwapPss:")))


def resident(path: Path) -> int:
    """Returns the bytes of a mapped file that this process has touched."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            inside = line.endswith(str(path))
        elif inside and first == "Rss:":
            total += 1024 * int(line.split()[1])
    return total


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
