"""Log-probabilities of answers through our server and through llama.cpp's, both with the weights of one gguf file."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import requests
import torch
from clients_parts.server import serving

from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.convert.gguf import write_gguf
from lit_gpt.tokenizer import Tokenizer

KINDS = ("F32", "F16", "Q8_0")
"""Types of the gguf files' matrices."""
_SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "convert_hf_checkpoint.py"
_PATIENCE = 120


class _Question(NamedTuple):
    """A question with its answers, as tokens."""

    prompt: list[int]
    answers: list[list[int]]


def rows(checkpoint_dir: Path, data: Path, folder: Path, n: int, kinds: Sequence[str]) -> Iterator[str]:
    """Yields a line for each type of gguf files: how far the log-probabilities of both servers are apart.

    Args:
        data: folder with truthfulqa_mc.jsonl.
        folder: where the gguf files and our checkpoints of them are written.
        n: number of questions.
        kinds: some of KINDS.
    """
    tokenizer = Tokenizer(checkpoint_dir)
    questions, texts = _questions(data / "truthfulqa_mc.jsonl", tokenizer, n)
    for kind in kinds:
        path = _gguf(checkpoint_dir, folder / kind, kind)
        with serving(folder / kind, "--precision", "32-true") as (url, _):
            ours = [[_ours(url, q.prompt, answer) for answer in q.answers] for q in questions]
        with _llama_cpp(path) as url:
            alike = sum(_tokens(url, text) == ids for text, ids in texts)
            theirs = [[_theirs(url, q.prompt, answer) for answer in q.answers] for q in questions]
        yield f"{kind}: {_difference(ours, theirs)}; {alike} of {len(texts)} texts are the same tokens"


def _questions(path: Path, tokenizer: Tokenizer, n: int) -> tuple[list[_Question], list[tuple[str, list[int]]]]:
    """Returns the first questions of TruthfulQA as tokens, and all their texts with the tokens of each."""
    found, texts = [], []
    with path.open(encoding="utf-8") as file:
        for _, line in zip(range(n), file, strict=False):
            row = json.loads(line)
            asked, answers = f"Q: {row['question']}\nA:", [f" {choice}" for choice in row["mc1_targets"]["choices"]]
            found.append(_Question(tokenizer.encode(asked), [tokenizer.encode(a, bos=False) for a in answers]))
            texts += [(asked, found[-1].prompt), *zip(answers, found[-1].answers, strict=True)]
    return found, texts


def _gguf(checkpoint_dir: Path, folder: Path, kind: str) -> Path:
    """Writes a gguf file, and beside it our own checkpoint of what is in that file; returns the gguf file."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := list(folder.glob("*.gguf"))):
        found = [write_gguf(*open_lit(checkpoint_dir), checkpoint_dir, folder, kind)]
    if not (folder / "lit_model.pth").exists():
        subprocess.run([sys.executable, str(_SCRIPT), "--checkpoint_dir", str(folder)], check=True)
    return found[0]


def _ours(url: str, prompt: list[int], answer: list[int]) -> list[float]:
    """Returns the log-probability of each token of an answer by our server."""
    wish = {"prompt": prompt + answer, "max_tokens": 0, "echo": True, "logprobs": 0}
    response = requests.post(f"{url}/v1/completions", json=wish, timeout=_PATIENCE)
    response.raise_for_status()
    return response.json()["choices"][0]["logprobs"]["token_logprobs"][len(prompt) :]


@contextmanager
def _llama_cpp(path: Path) -> Iterator[str]:
    """Starts llama.cpp's server with a gguf file, its cache in fp32, and yields its address."""
    xllamacpp: Any = import_module("xllamacpp")  # compiled, without types
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.verbosity = 1_024, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    params.warmup = params.fit_params = False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    yield server.listening_address
    del server


def _theirs(url: str, prompt: list[int], answer: list[int]) -> list[float]:
    """Returns the log-probability of each token of an answer by llama.cpp's server.

    It scores no text, but draws a token with a bias that no other token can beat, and says how likely the model alone
    takes it to be.
    """
    found = []
    for i, token in enumerate(answer):
        wish = {"prompt": prompt + answer[:i], "max_tokens": 1, "logprobs": 1, "temperature": 0}
        response = requests.post(
            f"{url}/v1/completions", json=wish | {"logit_bias": {str(token): 1000}}, timeout=_PATIENCE
        )
        response.raise_for_status()
        drawn = response.json()["choices"][0]["logprobs"]["content"][0]
        if drawn["id"] != token:
            raise RuntimeError(f"llama.cpp drew token {drawn['id']} and not {token}")
        found.append(drawn["logprob"])
    return found


def _tokens(url: str, text: str) -> list[int]:
    asked = {"content": text, "add_special": False, "parse_special": True}
    return requests.post(f"{url}/tokenize", json=asked, timeout=_PATIENCE).json()["tokens"]


def _difference(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    """Returns in words how far the log-probabilities of two servers are apart, by token, by answer, and by choice."""
    answers = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]
    tokens = [abs(x - y) for a, b in answers for x, y in zip(a, b, strict=True)]
    sums = [abs(sum(a) - sum(b)) for a, b in answers]
    chosen = [[max(range(len(q)), key=lambda i: sum(q[i])) for q in side] for side in (ours, theirs)]
    alike = sum(a == b for a, b in zip(*chosen, strict=True))
    line = f"{len(tokens)} tokens, {_quantiles(tokens)}; {len(sums)} answers, {_quantiles(sums)}"
    return f"{line}; {alike} of {len(ours)} questions get the same answer"


def _quantiles(values: Sequence[float]) -> str:
    """Returns the median, the 9th decile, the 99th percentile and the maximum of values in words."""
    ordered = sorted(values)
    at = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.9, 0.99, 1)]
    return "apart by " + ", ".join(f"{x:.1e}" for x in at) + " (half, 90 %, 99 %, all of them)"
