"""Serving on a CPU: HELM's multiple-choice questions and chats, ours and transformers behind the same server in turn.

python benchmarks/serve.py --folder /tmp/decode --questions truthfulqa_mc.jsonl --text alice.txt [--rounds 3]
    [--parts questions,chats] [--only ours,single,...] [--out FILE]
python benchmarks/serve.py --folder /tmp/random --random

The folder holds SmolLM2-135M-Instruct as benchmarks/decode.py makes it; `--random` takes random weights of its shape.
Where no files are named, questions and chats are of words of the checkout's pages. `single` is `generate` of
transformers, one request after the other, and `continuous` its continuous batching; both answer behind our HTTP server,
so that clients and endpoints are the same, and only the engine is another one (serve_parts/peers.py). Each contender is
a process, which sleeps while another one is measured. With a GPU, all of them use it.

Questions: clients send TruthfulQA's as HELM does, five answered ones first, one new token, five log-probabilities.
Every round has another five, which no contender has seen. Transformers gets the first few of the round's questions,
since one at a time takes as long for each of them however many wait. Chats: conversations of mixed lengths, all at
once, greedily, in which texts have to come out the same. Ratios are medians over the rounds, each within one round.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import torch
from say import Say
from serve_parts.asking import Asked, Got, ask, chats, multiple_choice
from serve_parts.contenders import CONTENDERS, ROOT, Contender
from serve_parts.material import make_random, own_questions, own_text
from train_parts.material import Material

_QUESTIONS = ("ours", "ours fp32", "single", "single fp32")
_CHATS = ("ours", "ours fp32", "continuous", "continuous fp32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--questions", type=Path, help="TruthfulQA in the hub's schema, a row a line")
    parser.add_argument("--text", type=Path, help="a plain text, of which passages are taken")
    parser.add_argument("--random", action="store_true", help="take random weights where the folder has no model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ours", type=int, default=64, help="questions a round for ours")
    parser.add_argument("--theirs", type=int, default=4, help="questions a round for transformers in fp32")
    parser.add_argument("--theirs16", type=int, default=4, help="the same in bf16; a minute each on some processors")
    parser.add_argument("--chats", type=int, default=16, help="chats a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--parts", default="questions,chats")
    parser.add_argument("--only", default=",".join(CONTENDERS), help="contenders, separated by commas")
    parser.add_argument("--out", type=Path, help="file that what is printed is added to")
    args = parser.parse_args()
    material, only, parts = Material(args.folder), args.only.split(","), args.parts.split(",")
    if args.random:
        make_random(material)
    material.make_model()
    say = Say(args.out)
    say(_head("random weights" if args.random else material.ours.name, args.threads))
    names = {name: None for part in parts for name in (_QUESTIONS if part == "questions" else _CHATS) if name in only}
    running: dict[str, Contender] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: told to stop"))  # the contenders end, too
    try:
        for name in names:
            running[name] = Contender(name, material.ours, material.theirs, args.threads)
        if "questions" in parts:
            _measure_questions({n: running[n] for n in _QUESTIONS if n in running}, args, say)
        if "chats" in parts:
            _measure_chats({n: running[n] for n in _CHATS if n in running}, args, say)
    finally:
        for contender in running.values():
            contender.end()


def _head(model: str, threads: int) -> str:
    """Returns where and with what it was measured."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "fastapi", "uvicorn"))
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{model}, {threads} threads, {platform.processor() or platform.machine()}{gpu}, "
        f"{torch.backends.cpu.get_cpu_capability()}, {versions}, commit {commit.stdout.strip()}; load before: {load}"
    )


def _measure_questions(running: dict[str, Contender], args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Measures requests a second, and says how far the answers agree."""
    rows = own_questions() if args.questions is None else _rows(args.questions)
    numbers = {"single": args.theirs16, "single fp32": args.theirs}
    rates: dict[str, list[float]] = {name: [] for name in running}
    same: dict[str, list[bool]] = {name: [] for name in running}
    worst, likened = 0.0, "single fp32" if "single fp32" in running else next(iter(running))
    for i in range(args.rounds):
        asked = multiple_choice(rows, args.ours, args.seed + i)
        found: dict[str, Got] = {}
        for name, contender in running.items():
            part = asked[: numbers.get(name, args.ours)]
            with contender.awake() as url:
                found[name] = ask(url, part, clients=32)
            rates[name].append(len(part) / found[name].seconds)
        reference = found[likened]
        for name, got in found.items():
            pairs = list(zip(got.answers, reference.answers, strict=False))
            same[name] += [a["text"] == b["text"] for a, b in pairs]
            if name == "ours fp32":
                worst = max(worst, *(_difference(a, b) for a, b in pairs))
    say(f"HELM's questions of 32 clients, {args.ours} (single: {args.theirs16}, single fp32: {args.theirs}) a round, "
        f"requests/s: median, least, most of {args.rounds} rounds; answers as of {likened}")  # fmt: skip
    for name, r in rates.items():
        say(
            f"  {name:16}{statistics.median(r):8.3f}{min(r):8.3f}{max(r):8.3f}   {sum(same[name])} of {len(same[name])}"
        )
    if "single fp32" in running and "ours fp32" in running:
        say(f"  log-probabilities of the five most likely tokens, ours fp32 and single fp32: {worst:.1e} apart at most")
    _say_ratios(rates, [("ours", "single"), ("ours", "single fp32"), ("ours fp32", "single fp32")], say)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Returns how far the log-probabilities of two answers are apart at most, for tokens that both name."""
    tops = [answer["tokens"][0]["top_logprob"] for answer in (a, b)]
    return max(abs(tops[0][text] - tops[1][text]) for text in tops[0].keys() & tops[1].keys())


def _measure_chats(running: dict[str, Contender], args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Measures tokens a second, and says how many texts are the same, and what made the others differ."""
    rates: dict[str, list[float]] = {name: [] for name in running}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
    text = own_text() if args.text is None else args.text.read_text(encoding="utf-8")
    for i in range(args.rounds):
        asked = chats(text, args.chats, args.seed + i)
        for name, contender in running.items():
            with contender.awake() as url:
                got = ask(url, asked, clients=16)
            rates[name].append(sum(a["usage"]["completion_tokens"] for a in got.answers) / got.seconds)
            found[name] += got.answers
            _require_lengths(asked, got)
    usages = [answer["usage"] for answer in next(iter(found.values()))]
    lengths = ", ".join(
        f"{min(n)} to {max(n)} {what}"
        for what in ("prompt", "new")
        for n in [[u["prompt_tokens" if what == "prompt" else "completion_tokens"] for u in usages]]
    )
    say(f"{args.chats} chats at once of 16 clients, tokens: {lengths}; new tok/s: median, least, most of {args.rounds} "
        "rounds")  # fmt: skip
    for name, r in rates.items():
        say(f"  {name:16}{statistics.median(r):8.1f}{min(r):8.1f}{max(r):8.1f}")
    pairs = [("ours", "continuous"), ("ours", "continuous fp32"), ("ours fp32", "continuous fp32")]
    _say_ratios(rates, pairs, say)
    pairs = [("ours fp32", "continuous fp32"), ("ours", "ours fp32"), ("continuous", "continuous fp32")]
    for a, b in [*pairs, ("ours", "continuous")]:
        if a in found and b in found and "ours fp32" in running:
            with running["ours fp32"].awake() as url:
                texts, others = ([_ids(x) for x in found[name]] for name in (a, b))
                say(_agreement(url, a, b, texts=texts, others=others))


def _require_lengths(asked: Sequence[Asked], got: Got) -> None:
    """Checks that every text has as many tokens as it was asked for."""
    for one, answer in zip(asked, got.answers, strict=True):
        assert len(_ids(answer)[1]) == one.body["max_tokens"], (one.body["max_tokens"], answer["usage"])


def _ids(answer: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Returns the tokens of a prompt and of its answer."""
    return answer["prompt_token_ids"], answer["choices"][0]["token_ids"]


_Texts = Sequence[tuple[list[int], list[int]]]


def _agreement(url: str, a: str, b: str, texts: _Texts, others: _Texts) -> str:
    """Returns a line: how many texts are the same, and by how much the two tokens differ where texts part.

    Args:
        url: a server in fp32, which says how likely either token is there.
    """
    gaps = []
    for (prompt, mine), (_, theirs) in zip(texts, others, strict=True):
        n = next((i for i, (x, y) in enumerate(zip(mine, theirs, strict=True)) if x != y), None)
        if n is not None:
            start = [*prompt, *mine[:n]]
            gaps.append(abs(_logprob(url, start, mine[n]) - _logprob(url, start, theirs[n])))
    line = f"  {a}, {b}: {len(texts) - len(gaps)} of {len(texts)} texts the same"
    if not gaps:
        return line
    return (
        f"{line}; where the others part, the log-probabilities of both tokens, in fp32, are "
        f"{statistics.median(gaps):.3f} apart in the median and {max(gaps):.3f} at most"
    )


def _logprob(url: str, ids: list[int], token: int) -> float:
    """Returns the log-probability of a token after others."""
    body = {"prompt": [*ids, token], "max_tokens": 0, "echo": True, "logprobs": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
    return answer["choices"][0]["logprobs"]["token_logprobs"][-1]


def _say_ratios(rates: dict[str, list[float]], pairs: list[tuple[str, str]], say: Callable[[str], None]) -> None:
    for a, b in pairs:
        if a in rates and b in rates:
            ratios = [x / y for x, y in zip(rates[a], rates[b], strict=True)]
            say(f"  {a} / {b}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
