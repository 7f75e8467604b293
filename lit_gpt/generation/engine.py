"""Decoding with a KV cache: one prompt at a time, or many of different lengths side by side."""

from collections.abc import Collection, Iterator, Sequence

import torch

from lit_gpt.errors import UserError
from lit_gpt.generation.sampling import sample
from lit_gpt.model import GPT, KVCache


def generate(
    model: GPT,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """Yield new tokens as they are drawn, up to and without the first of `stop_ids`.

    Args:
        prompt: at least one token id.

    Raises:
        UserError: the prompt leaves no room in the model's block_size.
    """
    for tokens in generate_batch(
        model, [prompt], max_new_tokens, temperature=temperature, top_k=top_k, stop_ids=stop_ids
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
) -> Iterator[list[int | None]]:
    """Yield one new token a row at a time; None for a row that has drawn one of `stop_ids` or filled the model.

    Rows are padded on the right and each keeps its own positions, so that a row's text does not depend on the others.

    Raises:
        UserError: a prompt is empty, or leaves no room in the model's block_size.
    """
    lengths = [len(p) for p in prompts]
    block_size = model.config.block_size
    if min(lengths) == 0:
        raise UserError("the prompt has no tokens")
    if max(lengths) >= block_size:
        raise UserError(f"the prompt has {max(lengths)} tokens, and the model has room for {block_size} in all")
    device = model.transformer.wte.weight.device
    width = max(lengths)
    cache = KVCache(model, len(prompts), min(width + max_new_tokens, block_size))
    ids = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts], device=device)  # (B, T)
    hidden = model.hidden(ids, torch.arange(width, device=device), cache)  # (B, T, C)
    position = torch.tensor(lengths, device=device)  # (B,), of the token that is drawn next
    last = hidden[torch.arange(len(prompts), device=device), position - 1]  # (B, C)
    running = [True] * len(prompts)
    for n in range(max_new_tokens):
        token = sample(model.logits(last), temperature, top_k)  # (B,)
        drawn = token.tolist()
        running = [
            r and t not in stop_ids and lengths[i] + n < block_size
            for i, (r, t) in enumerate(zip(running, drawn, strict=True))
        ]
        if not any(running):
            return
        yield [t if r else None for t, r in zip(drawn, running, strict=True)]
        if n + 1 < max_new_tokens:
            at = position.clamp(max=block_size - 1)  # rows that have ended may be past it; nobody reads them
            last = model.hidden(token[:, None], at[:, None], cache)[:, 0]
            position = position + 1
