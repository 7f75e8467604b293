"""Peak memory of loading one model, and of a step of LoRA on it, with weights in 16, 8 and 4 bits.

python benchmarks/quantized_memory.py --folder /tmp/q > benchmarks/results/quantized_memory.txt

A model of TinyLlama's shape with random weights, saved in bf16. Each kind is a process of its own. What counts is
memory that the process has of its own (RssAnon); the file's pages, which are mapped while they are read, the system
takes back when it needs them: a column of its own has the peak with them. Linux only. The step is one of a few tokens.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
KINDS = ("none", "int8", "bnb.int8", "bnb.nf4", "bnb.nf4-dq")
SHAPE = "tiny-llama-1.1b"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the model is kept, 2.2 GB; used again")
    parser.add_argument("--kinds", default=",".join(KINDS), help="values of --quantize; none is bf16")
    parser.add_argument("--tokens", type=int, default=16, help="of the step")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.folder, None if args.child == "none" else args.child, args.tokens)))
        return
    if not (args.folder / "lit_model.pth").is_file():
        make_model(args.folder)
    print(where(), flush=True)
    print(f"GB (10^9 bytes); {SHAPE} in bf16, LoRA r 8 on all linear layers, a step of {args.tokens} tokens")
    heads = f"{'loading':>10}{'loaded':>9}{'a step':>9}{'with file':>11}{'s a step':>10}"
    print(f"{'weights':12}{'their bytes':>12}{heads}")
    for kind in args.kinds.split(","):
        command = [sys.executable, __file__, "--folder", args.folder, "--tokens", args.tokens, "--child", kind]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"error: {kind} failed\n{done.stderr[-2000:]}")
        f = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{'bf16' if kind == 'none' else kind:12}{f['weights']:12.2f}{f['loading']:10.2f}{f['loaded']:9.2f}"
            f"{f['step']:9.2f}{f['mapped']:11.2f}{f['seconds']:10.0f}",
            flush=True,
        )
    print("their bytes: all frozen weights, the scales of 4 bits apart (0.06 GB; 0.02 GB in nf4-dq)")
    print("loading, a step: the peak, less what Python and torch had before; loaded: what is left after loading, with")
    print("what the allocator does not give back, which differs by up to 0.5 GB between kinds and between runs")


def make_model(folder: Path) -> None:
    """A checkpoint with random weights, written one tensor at a time."""
    import torch

    from lit_gpt.args.folders import CONFIG, WEIGHTS
    from lit_gpt.families import config_for
    from lit_gpt.files import Spec, save_stream
    from lit_gpt.model import GPT

    config = config_for(SHAPE)
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in GPT(config).state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    specs = {name: Spec(shape, torch.bfloat16) for name, shape in shapes.items()}
    drawn = ((n, (torch.randn(s) * 0.02 if len(s) > 1 else torch.ones(s)).bfloat16()) for n, s in shapes.items())
    save_stream(specs, drawn, folder / WEIGHTS)
    config.to_json(folder / CONFIG)


class Peak:
    """The most memory of its own that this process has had since `start`, in GB, looked at every two milliseconds."""

    def __init__(self) -> None:
        self.most, self.over = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self) -> "Peak":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()

    def watch(self) -> None:
        while not self.over.wait(0.002):
            self.most = max(self.most, own_gb())


def own_gb() -> float:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024 / 1e9


def measure(folder: Path, kind: str | None, n_tokens: int) -> dict[str, float]:
    """Load the model, take a step, and say what both took, in GB."""
    import numpy as np
    import torch

    from lit_gpt.args import LoRAArgs
    from lit_gpt.checkpoints.base import load_base
    from lit_gpt.data.batches import collate
    from lit_gpt.fabric import make_fabric
    from lit_gpt.layers.linear import Linear
    from lit_gpt.layers.quantize import quantized
    from lit_gpt.methods import lora
    from lit_gpt.resources import peak_memory_gb
    from lit_gpt.training.loss import loss_sum

    fabric = make_fabric("bf16-true", 0)
    if kind is not None:
        quantized(Linear(64, 64), kind)  # imports
    before = own_gb()
    with Peak() as loading:
        model, _ = load_base(fabric, folder, kind)
    loaded = own_gb()
    lora.inject(model, LoRAArgs(lora_r=8, lora_key=True, lora_projection=True, lora_mlp=True))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    ids = np.arange(3, n_tokens + 3, dtype=np.int32)
    batch, start = collate([(ids, ids)]), time.perf_counter()
    with Peak() as step:
        (loss_sum(model.train(), batch) / batch.n_targets).backward()
        optimizer.step()
    seconds = time.perf_counter() - start
    packed = sum(
        x.nbytes for m in model.modules() for x in m._parameters.values() if x is not None and not x.requires_grad
    )
    return {
        "weights": packed / 1e9,
        "loading": loading.most - before,
        "loaded": loaded - before,
        "step": step.most - before,
        "mapped": peak_memory_gb(),
        "seconds": seconds,
    }


def where() -> str:
    """Machine, versions and commit."""
    import torch

    cpu = Path("/proc/cpuinfo").read_text()
    named = next((line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name")), "")
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return (
        f"benchmarks/quantized_memory.py, commit {said.stdout.strip() or 'unknown'}, {time.strftime('%Y-%m-%d')}\n"
        f"{named or platform.processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, torch {version('torch')}, bitsandbytes {version('bitsandbytes')}"
    )


if __name__ == "__main__":
    main()
