"""Who decodes: each loads the model in its own way, and then draws texts greedily when asked to.

python contenders.py NAME FOLDER THREADS reads lines from stdin and answers each with the seconds it took: "rows new"
draws so many new tokens for each of `prompts`, "NAME new" at most so many for a question or task of that name, up to
the end token, and says also how many came and what they were, where the contender tells.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from decode_parts.questions import asked

PROMPT = 34
"""Tokens of a prompt."""
LLAMA_CPP_GUESSES = "NGRAM_SIMPLE", 3, 8
"""llama.cpp's speculation by n-grams, the tokens that must match, and those that it guesses: of its five kinds with
their own settings this is the fastest one here, and faster with these numbers than with its own, 12 and 48."""
_END = 2
"""Token that ends an answer."""
_Draw = Callable[[Sequence[Sequence[int]], int], Sequence[Any]]
"""Function that draws so many new tokens for each prompt. Those that draw answers draw at most so many, up to the end
token, and return the tokens of each, or None for each where they do not tell which."""


class _Draws(NamedTuple):
    """What a contender can do; no call finds anything of an earlier one in a cache."""

    texts: _Draw
    answers: _Draw | None = None


def prompts(n: int) -> list[list[int]]:
    """Returns prompts of which no two begin alike, so that nobody computes one for another."""
    return [[1000 + 7 * i, *range(2000, 1999 + PROMPT)] for i in range(n)]


def plain(folder: Path, quantize: str | None = None) -> _Draws:
    """Loads the model in bf16 and runs it as it is, a token for every row in each step."""
    from lit_gpt.generation.lockstep.batch import generate_batch

    model = _loaded(folder, "bf16-true", quantize).eval()

    def draw(texts: Sequence[Sequence[int]], new: int) -> Sequence[Any]:
        steps = list(generate_batch(model, texts, new, temperature=0, compile=False))
        assert len(steps) == new, f"{len(steps)} of {new} tokens came"
        return steps

    return _Draws(draw)


def ours(folder: Path, precision: Any, quantize: str | None = None, guesses: bool = False) -> _Draws:
    """Loads what generate/base.py, the chat and the server answer with.

    Args:
        guesses: speculate as the scripts and the chat do unless told otherwise.
    """
    from lit_gpt.args import SamplingArgs
    from lit_gpt.generation.engine import Engine
    from lit_gpt.generation.request import GREEDY, Request
    from lit_gpt.tokenizer import Tokenizer

    most = SamplingArgs().speculative_tokens if guesses else 0
    model, tokenizer = _loaded(folder, precision, quantize), Tokenizer(_path(folder))
    engine = Engine(model, tokenizer, max_tokens=8192, speculative_tokens=most)

    def draw(texts: Sequence[Sequence[int]], new: int, stop_ids: frozenset[int] = frozenset()) -> Sequence[Any]:
        engine.scheduler.clear()  # or the engine would not read the prompts again
        answers = engine.complete([Request(ids, new, GREEDY, stop_ids=stop_ids) for ids in texts])
        assert stop_ids or all(len(a.tokens) == new for a in answers)
        return [[token.id for token in a.tokens] for a in answers]

    return _Draws(draw, lambda texts, new: draw(texts, new, frozenset({_END})))


def _path(folder: Path) -> Path:
    return folder / "SmolLM2-135M-Instruct"


def _loaded(folder: Path, precision: Any, quantize: str | None) -> Any:
    """Returns the model in a precision."""
    from lit_gpt.checkpoints.base import load_base
    from lit_gpt.fabric import make_fabric

    return load_base(make_fabric(precision), _path(folder), quantize)[0]


def transformers(folder: Path) -> _Draws:
    """Loads the same weights with transformers, in bf16."""
    import torch
    from transformers import AutoModelForCausalLM

    path = folder / "hf" / "SmolLM2-135M-Instruct"
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None

    def draw(texts: Sequence[Sequence[int]], new: int) -> Sequence[Any]:
        ids = torch.tensor(texts)
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip

    return _Draws(draw)


def llama_cpp(folder: Path, kind: str, n_threads: int, guesses: bool = False) -> _Draws:
    """Loads a gguf file of ours into llama.cpp, with room for eight texts at once.

    Args:
        guesses: speculate by `LLAMA_CPP_GUESSES`; by itself it does not.
    """
    import xllamacpp as package  # pyright: ignore[reportMissingImports] measured where it is installed

    xllamacpp: Any = package  # it says nothing of its types

    (path,) = (folder / f"gguf-{kind}").glob("*.gguf")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), 8 * 512, 8, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
    params.fit_params = False
    if guesses:
        kind_of_guesses, n_match, n_guessed = LLAMA_CPP_GUESSES
        params.speculative.types = [
            getattr(xllamacpp.common_speculative_type, f"COMMON_SPECULATIVE_TYPE_{kind_of_guesses}")
        ]
        params.speculative.ngram_simple.size_n, params.speculative.ngram_simple.size_m = n_match, n_guessed
    server = xllamacpp.Server(params)

    def one(ids: Sequence[int], new: int, to_the_end: bool = False) -> int:
        asked = {"prompt": list(ids), "max_tokens": new, "temperature": 0, "cache_prompt": False}
        answer = server.handle_completions(asked | {"ignore_eos": not to_the_end})
        n = answer["usage"]["completion_tokens"]
        assert to_the_end or n == new, answer
        return n

    def draw(texts: Sequence[Sequence[int]], new: int) -> Sequence[Any]:
        with ThreadPoolExecutor(len(texts)) as threads:
            return list(threads.map(lambda ids: one(ids, new), texts))

    return _Draws(draw, lambda texts, new: [[None] * one(ids, new, to_the_end=True) for ids in texts])


CONTENDERS: dict[str, Callable[[Path, int], _Draws]] = {
    "plain": lambda folder, _: plain(folder),
    "ours": lambda folder, _: ours(folder, "bf16-true"),
    "ours, guessing": lambda folder, _: ours(folder, "bf16-true", guesses=True),
    "ours fp32": lambda folder, _: ours(folder, "32-true"),
    "plain int8": lambda folder, _: plain(folder, "int8"),
    "ours int8": lambda folder, _: ours(folder, "bf16-true", "int8"),
    "ours int8, guessing": lambda folder, _: ours(folder, "bf16-true", "int8", guesses=True),
    "transformers": lambda folder, _: transformers(folder),
    "llama.cpp BF16": lambda folder, n: llama_cpp(folder, "BF16", n),
    "llama.cpp BF16, guessing": lambda folder, n: llama_cpp(folder, "BF16", n, guesses=True),
    "llama.cpp Q8_0": lambda folder, n: llama_cpp(folder, "Q8_0", n),
    "llama.cpp Q8_0, guessing": lambda folder, n: llama_cpp(folder, "Q8_0", n, guesses=True),
}


def main() -> None:
    name, folder, n_threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    start = time.perf_counter()
    draws = CONTENDERS[name](folder, n_threads)
    loaded = time.perf_counter()
    draws.texts(prompts(1), 33)
    print(f"ready {loaded - start} {time.perf_counter() - loaded}", flush=True)
    questions = asked(_path(folder)) if draws.answers else {}
    for line in sys.stdin:
        what, new = line.split()
        start = time.perf_counter()
        if what in questions and draws.answers:
            (tokens,) = draws.answers([questions[what]], int(new))
        else:
            tokens = draws.texts(prompts(int(what)), int(new))[:0]
        print(f"took {time.perf_counter() - start} {json.dumps(list(tokens))}", flush=True)


if __name__ == "__main__":
    main()
