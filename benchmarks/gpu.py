"""The table of speed and memory on one GPU, from random weights of Llama-2-7B's shape: ours, the peers, the ceilings.

python benchmarks/gpu.py [--only checks,ceilings,training,...] [--minutes 8] [--out FILE]

Nothing is downloaded: a model with random weights costs what the real one costs. Each section is a process of its
own, so that one that fails or hangs takes no other along; each gets what is left of its time. litgpt and liger-kernel
are compared where they are installed. `--device cpu --tiny` runs everything at toy size.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parent.parent
SECTIONS = {  # name -> (seconds it may take, what it is), in the order of their worth
    "ceilings": (30, "what the device can do"),
    "checks": (60, "correct first: loss and gradients on fresh random input"),
    "training": (130, "LoRA on bf16 weights"),
    "quantized": (130, "LoRA, r 8 on q and v, on 8-bit and 4-bit weights"),
    "peers": (120, "peers, the same documents"),
    "decoding": (90, "decode, batch 1"),
    "engine": (75, "the engine: many rows, guessed tokens"),
    "breakdown": (60, "where the time of a step goes"),
    "kernels": (60, "small functions: eager, ours, liger-kernel's"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--minutes", type=float, default=8, help="for everything")
    parser.add_argument("--out", type=Path, help="a file for the same text")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a toy shape and few repeats")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--figures", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        run_section(args)
        return
    unknown = set(args.only.split(",")) - set(SECTIONS)
    if unknown:
        sys.exit(f"error: no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    with open(args.out or os.devnull, "w", encoding="utf-8") as out:
        report(args, Output(out))


@dataclass
class Output:
    """Standard output and a file, in step."""

    file: TextIO

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()


def report(args: argparse.Namespace, output: Output) -> None:
    """Run the sections one after the other, then print the table."""
    ends = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        figures.write_text("{}")
        for line in header(args):
            output.say(line)
        for name in (name for name in SECTIONS if name in args.only.split(",")):
            seconds, title = SECTIONS[name]
            left = ends - time.monotonic() - 5
            output.say(f"\n{name}: {title}")
            if left < 15:
                output.say("  skipped, the time is used up")
                continue
            start = time.monotonic()
            end = run_child(args, name, min(seconds, left), figures=figures, output=output)
            output.say(f"  [{time.monotonic() - start:.0f} s{end}]")
        found = json.loads(figures.read_text())
    from gpu_parts.targets import table

    output.say(f"\n{'toy size: these figures say nothing' if args.tiny else 'all figures'}\n{table(found)}")
    output.say("\nfigures " + json.dumps({k: float(f"{v:.5g}") for k, v in found.items()}))


def run_child(args: argparse.Namespace, name: str, seconds: float, figures: Path, output: Output) -> str:
    """Run a section in a process of its own, ended when it is late; returns what is to be said of its end."""
    command = [sys.executable, __file__, "--section", name, "--seconds", f"{seconds:.0f}", "--figures", figures]
    command += ["--device", args.device, *(["--tiny"] if args.tiny else [])]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds + 10, end)
    timer.start()
    for line in process.stdout or ():
        output.say(line.rstrip("\n"))
    code = process.wait()
    timer.cancel()
    return ", ended because it was late" if late.is_set() else f", FAILED with code {code}" if code else ""


def run_section(args: argparse.Namespace) -> None:
    """What the child does: one section, whose figures join those of the sections before it."""
    import importlib
    import warnings

    import torch
    from gpu_parts.context import Context

    warnings.filterwarnings("ignore")
    figures = json.loads(args.figures.read_text())
    context = Context(torch.device(args.device), args.tiny, time.monotonic() + args.seconds, figures)
    module, function = ("training", "quantized") if args.section == "quantized" else (args.section, "run")
    try:
        getattr(importlib.import_module(f"gpu_parts.{module}"), function)(context)
    finally:
        args.figures.write_text(json.dumps(context.figures))


def header(args: argparse.Namespace) -> list[str]:
    """What was measured, where, with what."""
    import torch

    lines = [f"benchmarks/gpu.py, commit {commit()}, {time.strftime('%Y-%m-%d %H:%M')}"]
    lines.append(f"python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}")
    if args.device == "cuda":
        wanted = "name,driver_version,memory.total,power.limit,clocks.max.sm"
        query = ["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader"]
        try:
            lines.append(subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip())
        except (OSError, subprocess.TimeoutExpired) as e:
            lines.append(f"nvidia-smi: {e}")
    shape = "a toy" if args.tiny else "Llama-2-7B, 6,738,415,616 weights"
    lines.append(f"shape: {shape}, random weights, random tokens; no recomputation; medians, warm-up excluded")
    return lines


def commit() -> str:
    """Of the checkout, with or without git; `unknown` if nothing says."""
    try:
        said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        if said.returncode == 0:
            changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
            return said.stdout.strip() + (" with changes" if changed.strip() else "")
    except OSError:
        pass
    head = ROOT / ".git/HEAD"
    if not head.is_file():
        return "unknown"
    word = head.read_text().split()[-1]
    branch = ROOT / ".git" / word
    return branch.read_text().strip() if branch.is_file() else word


if __name__ == "__main__":
    main()
