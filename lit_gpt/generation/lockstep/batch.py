"""Generation of new tokens for one prompt, or for a batch of prompts of different lengths."""

import importlib.util
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.generation.lockstep.decode import Decoder
from lit_gpt.generation.sampling.sampler import sample
from lit_gpt.model import GPT

FAST_FROM = 32
"""Fewest new tokens for which kernels and CUDA graphs on a GPU, and packed weights on a CPU, save more time than they
take to prepare."""
_AS_IT_IS = {"way": "plain", "capture": False}


def generate(
    model: GPT,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    stop_ids: Collection[int] = (),
    compile: bool | None = None,
    pick: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[int]:
    """Yields new tokens as they are sampled, up to and without the first of `stop_ids`.

    Args:
        prompt: at least one token id.
        compile, pick: as for `generate_batch`.

    Raises:
        UserError: the prompt leaves no room in the model's block_size.
    """
    for tokens in generate_batch(
        model,
        [prompt],
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        stop_ids=stop_ids,
        compile=compile,
        pick=pick,
    ):
        if tokens[0] is not None:
            yield tokens[0]


@torch.inference_mode()
def generate_batch(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    stop_ids: Collection[int] = (),
    compile: bool | None = None,
    pick: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[list[int | None]]:
    """Yields one new token per row at a time; None for a row that has drawn one of `stop_ids` or filled the context.

    Rows are padded on the right and each keeps its own positions, so that a row's text does not depend on the others.

    Args:
        compile: True takes some seconds to prepare and is fast from then on: with our Triton kernels, captured in a
            CUDA graph, on a GPU; with `torch.compile` elsewhere. False runs the model as it is. None means True on a
            GPU for 32 new tokens or more, and False otherwise: on a CPU the engine is faster.
        pick: draws a token for each row, (B,), from logits (B, V), instead of temperature and top_k.

    Raises:
        UserError: a prompt is empty, or leaves no room in the model's block_size; `torch.compile` fails.
    """
    lengths = [len(p) for p in prompts]
    block_size = model.config.block_size
    if min(lengths) == 0:
        raise UserError("the prompt has no tokens")
    if max(lengths) >= block_size:
        raise UserError(f"the prompt has {max(lengths)} tokens, and the model has room for {block_size} in all")
    length = min(max(lengths) + max_new_tokens, block_size)
    decoder = Decoder(model, len(prompts), length, **_decoder_options(model, max_new_tokens, compile))
    yield from draw(
        decoder,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        stop_ids=stop_ids,
        pick=pick,
    )


def compiles(model: GPT, max_new_tokens: int, compile: bool | None) -> bool:
    """Returns whether `generate_batch` runs another code than the model's own."""
    return _decoder_options(model, max_new_tokens, compile) != _AS_IT_IS


def _decoder_options(model: GPT, max_new_tokens: int, compile: bool | None) -> dict[str, Any]:
    """Returns the arguments of the `Decoder` that is fastest for `max_new_tokens`.

    Neither mixtures of experts nor models under autocast are compiled or captured: the former make the host wait for
    the GPU to learn which experts to run, the latter keeps its own copies of the weights.
    """
    device = model.transformer.wte.weight.device
    if compile is None:
        compile = device.type == "cuda" and max_new_tokens >= FAST_FROM
    if not compile or model.config.mlp == "moe" or not model.config.is_plain or torch.is_autocast_enabled(device.type):
        return _AS_IT_IS
    if device.type != "cuda":
        return {"way": "inductor", "capture": False}
    return {"way": "kernels" if importlib.util.find_spec("triton") else "plain", "capture": True}


def draw(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    stop_ids: Collection[int],
    pick: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[list[int | None]]:
    """Yields what `generate_batch` does, with the steps of `decoder`."""
    block_size = decoder.model.config.block_size
    queued = decoder.token.is_cuda  # on a GPU, a step returns at once and runs while the host reads the token before it
    running = [True] * len(prompts)
    logits = decoder.prefill(prompts)
    for n in range(max_new_tokens):
        token = sample(logits, temperature, top_k) if pick is None else pick(logits)  # (B,)
        drawn, more = _copy_to_host(token), n + 1 < max_new_tokens
        if more and queued:
            logits = decoder.step(token)
        ids = drawn()
        running = [
            r and t not in stop_ids and len(p) + n < block_size for r, t, p in zip(running, ids, prompts, strict=True)
        ]
        if not any(running):
            return
        yield [t if r else None for t, r in zip(ids, running, strict=True)]
        if more and not queued:
            logits = decoder.step(token)


def _copy_to_host(ids: Tensor) -> Callable[[], list[int]]:
    """Starts to copy `ids` to the host; returns a function that waits for the copy but not for later work."""
    if not ids.is_cuda:
        return ids.tolist
    host_ids, copied = ids.to("cpu", non_blocking=True), torch.cuda.Event()
    copied.record()

    def wait() -> list[int]:
        copied.synchronize()
        return host_ids.tolist()

    return wait
