"""Seconds from the command to the first token, of this tree and of an older commit in turn.

python benchmarks/startup.py --checkpoint_dir checkpoints/HuggingFaceTB/SmolLM2-135M-Instruct --against 3e4f0cc

Each start is a process of its own, `generate/base.py` with a short prompt, or with `--script chat` `generate/chat.py`
with the same prompt on its standard input. Wall is the time until the first token is written; processor is what the
process and its children took until then, which other work on the machine changes less.
The first start of each tree fills the disk's cache and is not counted. Linux only.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROMPT = "The capital of France is"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_dir", type=Path, required=True)
    parser.add_argument("--against", help="an older commit, which git checks out into a folder of its own")
    parser.add_argument("--script", choices=("base", "chat"), default="base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the packages")
    args = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "tokenizers"))
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"generate/{args.script}.py, {args.checkpoint_dir.name}, {machine}, {packages}")
    with trees(args.against) as places:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in places}
        for n in range(args.rounds + 1):
            for name, place in places.items():
                wall, processor = first_token(args.python, place, args.checkpoint_dir.resolve(), args.script)
                if n:
                    found[name].append((wall, processor))
                    load = os.getloadavg()[0]
                    print(
                        f"{n}: {name:10} wall {wall:6.2f} s, processor {processor:6.2f} s, load {load:.1f}", flush=True
                    )
    for name, rows in found.items():
        walls, processors = zip(*rows, strict=True)
        print(
            f"{name:13} wall {min(walls):.2f} s at best, {statistics.median(walls):.2f} in the median; "
            f"processor {min(processors):.2f} and {statistics.median(processors):.2f} s"
        )


@contextmanager
def trees(commit: str | None) -> Iterator[dict[str, Path]]:
    """The trees by name: that of the commit, which is removed afterwards, and this one."""
    if commit is None:
        yield {"ours": ROOT}
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(place), commit], check=True)
        try:
            yield {commit[:10]: place, "ours": ROOT}
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


def first_token(python: str, tree: Path, checkpoint_dir: Path, script: str) -> tuple[float, float]:
    """Seconds until the first token, and of processor until then."""
    words = ["--checkpoint_dir", str(checkpoint_dir), "--temperature", "0", "--max_new_tokens", "2"]
    words += ["--prompt", PROMPT] if script == "base" else []
    before = len(PROMPT) if script == "base" else 0  # the prompt comes first
    started = time.perf_counter()
    process = subprocess.Popen(
        [python, str(tree / f"generate/{script}.py"), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(tree)},
    )
    assert process.stdin and process.stdout
    if script == "chat":
        process.stdin.write(f"{PROMPT}\n".encode())
    process.stdin.close()
    said = b""
    while len(said) <= before:
        piece = os.read(process.stdout.fileno(), 4_096)
        if not piece:
            sys.exit(f"error: {tree}/generate/{script}.py wrote no token")
        said += piece
    seconds = time.perf_counter() - started, processor_seconds(process.pid)
    process.stdout.read()
    process.wait()
    return seconds


def processor_seconds(pid: int) -> float:
    """Of a process, and of its children, those that have ended included."""
    place = Path(f"/proc/{pid}")
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    children = [int(child) for path in place.glob("task/*/children") for child in path.read_text().split()]
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(map(processor_seconds, children))


if __name__ == "__main__":
    main()
