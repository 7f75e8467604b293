"""Tokens a second of the engine: many rows at once, and one text whose next tokens are guessed from what it has."""

import tempfile
import time
from pathlib import Path

import ours
import torch
from gpu_parts.context import Context

from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import Request, Sampling
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer

_KINDS = ("bf16", "fp8", "int8")
_GUESSES = 6
"""Tokens that are guessed a step."""


def run(context: Context) -> None:
    rows, prompt, new = (4, 24, 8) if context.tiny else (64, 768, 128)
    print(f"  {rows} texts at once, prompts of {prompt} tokens, no two alike, {new} new ones each")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = numbers(Path(folder), context.config.padded_vocab_size)
        for kind in _KINDS:
            model = context.attempt(kind, build, context, kind, needs_s=20)
            if model is not None:
                context.attempt(f"{kind}, {rows} rows", together, context, model, tokenizer, kind, rows, prompt, new)
                context.attempt(f"{kind}, guessed", guessed, context, model, tokenizer, kind, prompt, new)
            del model


def build(context: Context, kind: str) -> GPT:
    """Our model without LoRA, its blocks' weights being `kind`."""
    return ours.build(context.config, context.device, torch.bfloat16, None if kind == "bf16" else kind).eval()


def numbers(folder: Path, n: int) -> Tokenizer:
    """A tokenizer of n words, which are numbers."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    backend = Backend(models.WordLevel({str(i): i for i in range(n)}, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "2", "add_bos_token": false}')
    return Tokenizer(folder)


def together(context: Context, model: GPT, tokenizer: Tokenizer, kind: str, rows: int, prompt: int, new: int) -> None:
    """Print tokens a second of `rows` requests that come at once, the reading of their prompts included."""
    asked = [request(context, prompt, new) for _ in range(rows)]
    engine = Engine(model, tokenizer, max_rows=rows, max_tokens=rows * (prompt + new + 16), prefill_chunk=4096)
    engine.complete([request(context, prompt, 4)])  # warms up
    start = time.perf_counter()
    answers = engine.complete(asked)
    seconds = time.perf_counter() - start
    n = sum(len(answer.tokens) for answer in answers)
    context.figures[f"engine.{kind}.rows.tokens_per_sec"] = n / seconds
    print(f"  {kind:6}{rows:4} rows    {n / seconds:9.1f} tok/s, {rows * prompt / seconds:9.0f} of prompts", flush=True)


def guessed(context: Context, model: GPT, tokenizer: Tokenizer, kind: str, prompt: int, new: int) -> None:
    """Print tokens a second of one text without guesses, and with guesses of which all or none are right.

    A model with random weights copies nothing from its prompt, so the guesses are made right by a text that repeats
    one token, and wrong by a prompt of one token and a text of others. A summary lies between the two.
    """
    ids = [5] * prompt
    always = Sampling(temperature=0, logit_bias={5: 1e4})
    never = Sampling(temperature=0, logit_bias={5: -1e4}, frequency_penalty=2.0)
    rates = {}
    for name, n_guesses, sampling in (
        ("no guesses", 0, always), ("all right", _GUESSES, always), ("none right", _GUESSES, never)
    ):  # fmt: skip
        engine = Engine(model, tokenizer, max_rows=2, max_tokens=4 * (prompt + new), speculative_tokens=n_guesses)
        engine.complete([Request(ids, 4, sampling)])  # warms up, and keeps the prompt
        start = time.perf_counter()
        (answer,) = engine.complete([Request(ids, new, sampling)])
        rates[name] = len(answer.tokens) / (time.perf_counter() - start)
    context.figures[f"engine.{kind}.guessed.tokens_per_sec"] = rates["all right"]
    said = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
    print(f"  {kind:6}one text, {_GUESSES} guesses a step, tok/s: {said}", flush=True)


def request(context: Context, prompt: int, new: int) -> Request:
    """A greedy request for random tokens that no text ends early."""
    ids = torch.randint(3, context.config.vocab_size, (prompt,)).tolist()
    return Request(ids, new, Sampling(temperature=0))
