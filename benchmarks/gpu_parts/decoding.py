"""Tokens a second of drawing one text, by kind of weights, against the time that reading the weights takes."""

import statistics
import time
from itertools import pairwise

import ours
import torch
from gpu_parts.context import Context, Skip
from gpu_parts.operations import cache_bytes, decode_bytes

from lit_gpt.model import GPT

BYTES = {"bf16": 2.0, "bnb.nf4": 0.5 + 4 / 64, "int8": 1.0, "fp8": 1.0}
"""Bytes a weight of the blocks; nf4 has a scale for each 64."""


def run(context: Context) -> None:
    prompt, new = (8, 16) if context.tiny else (32, 256)
    print(
        f"  prompt {prompt}, {new} new tokens, a quarter if not compiled; tok/s after the first, steady: median token"
    )
    columns = {"weights": 9, "": 10, "tok/s": -8, "steady": -8, "limit": -8, "reached": -9, "first token": -13}
    print("  " + "".join(f"{c:{'<' if n > 0 else '>'}{abs(n)}}" for c, n in columns.items()) + "  first call")
    for kind in BYTES:
        model = context.attempt(kind, build, context, kind, needs_s=15)
        for compiled in (False, True) if model is not None else ():
            row = context, model, kind, compiled, prompt, new if compiled else new // 4
            context.attempt(f"{kind}, compiled {compiled}", draw, *row, needs_s=45 if compiled else 10)
        del model
        row = ()
    context.attempt("transformers", peer, context, prompt, min(new, 64), needs_s=20)


def build(context: Context, kind: str) -> GPT:
    """Our model without LoRA, its blocks' weights being `kind`."""
    return ours.build(context.config, context.device, torch.bfloat16, None if kind == "bf16" else kind).eval()


def draw(context: Context, model: GPT, kind: str, compiled: bool, prompt: int, new: int) -> None:
    """Print the row of the median text after a first one; the faster of compiled or not goes to `figures`."""
    ids = torch.randint(3, context.config.vocab_size, (prompt,)).tolist()
    runs = [one_text(model, ids, new, compiled) for _ in range(context.repeats + 1)]
    rate, steady, first = sorted(runs[1:])[context.repeats // 2]
    n_bytes = decode_bytes(context.config, BYTES[kind]) + cache_bytes(context.config, prompt + new // 2)
    limit = context.figures.get("copy_gb_s", float("nan")) * 1e9 / n_bytes
    if rate > context.figures.get(f"decode.{kind}.tokens_per_sec", 0):
        context.figures |= {f"decode.{kind}.tokens_per_sec": rate, f"decode.{kind}.of_limit": rate / limit}
    print(
        f"  {kind:9}{'compiled' if compiled else '':10}{rate:8.1f}{steady:8.1f}{limit:8.1f}{rate / limit:9.1%}"
        f"{1e3 * first:10.1f} ms{new / runs[0][0] + runs[0][2]:10.1f} s",
        flush=True,
    )


def one_text(model: GPT, ids: list[int], new: int, compiled: bool) -> tuple[float, float, float]:
    """Tokens a second after the first one, those of the median token, and seconds to the first."""
    start = time.perf_counter()
    stamps = [time.perf_counter() for _ in ours.draw(model, ids, new, compiled)]
    if len(stamps) != new:
        raise RuntimeError(f"{len(stamps)} of {new} tokens came")
    gaps = [b - a for a, b in pairwise(stamps)]
    return (new - 1) / (stamps[-1] - stamps[0]), 1 / statistics.median(gaps), stamps[0] - start


def peer(context: Context, prompt: int, new: int) -> None:
    from gpu_parts.peers import llama

    model = llama(context).eval()
    model.config.use_cache = True
    ids = torch.randint(3, context.config.vocab_size, (1, prompt), device=context.device)
    settings = {"do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0, "eos_token_id": None}
    times = []
    for _ in range(2):
        start = time.perf_counter()
        drawn = model.generate(ids, max_new_tokens=new, min_new_tokens=new, **settings)
        if context.on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    if drawn.size(1) != prompt + new:
        raise Skip(f"generate drew {drawn.size(1) - prompt} tokens")
    context.figures["decode.transformers.tokens_per_sec"] = new / times[-1]
    print(f"  transformers' generate, bf16, its own cache: {new / times[-1]:.1f} tok/s, first token included")
