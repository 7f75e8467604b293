"""Who decodes: each loads the model in its own way, and then draws texts greedily when asked to.

python contenders.py NAME FOLDER reads lines "rows new" from stdin, and answers each with the seconds it took.
"""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PROMPT = 34
"""Tokens of a prompt."""
_Draw = Callable[[Sequence[Sequence[int]], int], None]
"""Function that draws so many new tokens for each prompt."""


def prompts(n: int) -> list[list[int]]:
    """Returns prompts of which no two begin alike, so that nobody computes one for another."""
    return [[1000 + 7 * i, *range(2000, 1999 + PROMPT)] for i in range(n)]


def plain(folder: Path, quantize: str | None = None) -> _Draw:
    """Loads the model in bf16 and runs it as it is, a token for every row in each step."""
    from lit_gpt.generation.lockstep.batch import generate_batch

    model = _loaded(folder, "bf16-true", quantize).eval()

    def draw(texts: Sequence[Sequence[int]], new: int) -> None:
        n = len(list(generate_batch(model, texts, new, temperature=0, compile=False)))
        assert n == new, f"{n} of {new} tokens came"

    return draw


def ours(folder: Path, precision: Any, quantize: str | None = None) -> _Draw:
    """Loads what generate/base.py, the chat and the server answer with."""
    from lit_gpt.generation.engine import Engine
    from lit_gpt.generation.request import GREEDY, Request
    from lit_gpt.tokenizer import Tokenizer

    engine = Engine(_loaded(folder, precision, quantize), Tokenizer(_path(folder)), max_tokens=8192)
    calls = [0]

    def draw(texts: Sequence[Sequence[int]], new: int) -> None:
        calls[0] += 1  # other first tokens at each call, or the engine would not read them again
        answers = engine.complete([Request([3 + calls[0], *ids[1:], i], new, GREEDY) for i, ids in enumerate(texts)])
        assert all(len(a.tokens) == new for a in answers)

    return draw


def _path(folder: Path) -> Path:
    return folder / "SmolLM2-135M-Instruct"


def _loaded(folder: Path, precision: Any, quantize: str | None) -> Any:
    """Returns the model in a precision."""
    from lit_gpt.checkpoints.base import load_base
    from lit_gpt.fabric import make_fabric

    return load_base(make_fabric(precision), _path(folder), quantize)[0]


def transformers(folder: Path) -> _Draw:
    """Loads the same weights with transformers, in bf16."""
    import torch
    from transformers import AutoModelForCausalLM

    path = folder / "hf" / "SmolLM2-135M-Instruct"
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None

    def draw(texts: Sequence[Sequence[int]], new: int) -> None:
        ids = torch.tensor(texts)
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip

    return draw


def llama_cpp(folder: Path, kind: str, n_threads: int) -> _Draw:
    """Loads a gguf file of ours into llama.cpp, with room for eight texts at once."""
    import xllamacpp as package  # pyright: ignore[reportMissingImports] measured where it is installed

    xllamacpp: Any = package  # it says nothing of its types

    (path,) = (folder / f"gguf-{kind}").glob("*.gguf")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), 8 * 512, 8, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
    params.fit_params = False
    server = xllamacpp.Server(params)

    def one(ids: Sequence[int], new: int) -> None:
        asked = {"prompt": list(ids), "max_tokens": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = server.handle_completions(asked)
        assert answer["usage"]["completion_tokens"] == new, answer

    def draw(texts: Sequence[Sequence[int]], new: int) -> None:
        threads = [threading.Thread(target=one, args=(ids, new)) for ids in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return draw


CONTENDERS: dict[str, Callable[[Path, int], _Draw]] = {
    "plain": lambda folder, _: plain(folder),
    "ours": lambda folder, _: ours(folder, "bf16-true"),
    "ours fp32": lambda folder, _: ours(folder, "32-true"),
    "plain int8": lambda folder, _: plain(folder, "int8"),
    "ours int8": lambda folder, _: ours(folder, "bf16-true", "int8"),
    "transformers": lambda folder, _: transformers(folder),
    "llama.cpp BF16": lambda folder, n: llama_cpp(folder, "BF16", n),
    "llama.cpp Q8_0": lambda folder, n: llama_cpp(folder, "Q8_0", n),
}


def main() -> None:
    name, folder, n_threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    start = time.perf_counter()
    draw = CONTENDERS[name](folder, n_threads)
    loaded = time.perf_counter()
    draw(prompts(1), 33)
    print(f"ready {loaded - start} {time.perf_counter() - loaded}", flush=True)
    for line in sys.stdin:
        rows, new = map(int, line.split())
        start = time.perf_counter()
        draw(prompts(rows), new)
        print(f"took {time.perf_counter() - start}", flush=True)


if __name__ == "__main__":
    main()
