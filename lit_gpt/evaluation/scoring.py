"""Computes log-probabilities of many continuations with as few forward passes as possible.

Shapes: B batch, T tokens, C n_embd, N scored positions of a batch, V padded vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lit_gpt.model import GPT, KVCache

_Item = TypeVar("_Item")
Ids = tuple[int, ...]


def passes(model: GPT, heads: dict[Ids, list[Ids]], batch_size: int) -> Iterator[tuple[list[Ids], list[int], Tensor]]:
    """Yields (rows, end of each in the states, hidden states (B, T, C)), the longest rows first.

    Rows that begin with the same head share its computation: the model reads the head once, into a cache, and what is
    yielded then leaves out the states of the head.

    Args:
        heads: rows by their head, the ids that they begin with.
    """
    shared = {head: rows for head, rows in heads.items() if head and len(rows) > 1}
    longest = max((len(row) - len(head) for head, rows in shared.items() for row in rows), default=0)
    # padding must fit the model's context, and LongRoPE's frequencies for a head depend on the length of the whole row
    limit = model.rope.long_from or model.config.block_size
    shared = {head: rows for head, rows in shared.items() if len(head) + longest <= limit}
    alone = [row for head, rows in heads.items() if head not in shared for row in rows]
    for batch in batches(sorted(alone, key=len, reverse=True), batch_size):
        yield batch, [len(row) for row in batch], model.hidden(_padded(model, batch))
    for batch_heads in batches(sorted(shared, key=len, reverse=True), batch_size):
        head_cache = KVCache(model, len(batch_heads), len(batch_heads[0]))
        model.hidden(_padded(model, batch_heads), head_cache.positions, head_cache)
        rows = [(n, len(head), row) for n, head in enumerate(batch_heads) for row in shared[head]]
        for batch in batches(sorted(rows, key=lambda r: len(r[2]) - r[1], reverse=True), batch_size):
            head_rows, starts, whole = map(list, zip(*batch, strict=True))
            rests = [row[start:] for row, start in zip(whole, starts, strict=True)]
            yield (
                whole,
                [len(rest) for rest in rests],
                _continue_after(model, head_cache, head_rows, starts=starts, rests=rests),
            )


def _continue_after(
    model: GPT, head_cache: KVCache, head_rows: list[int], starts: list[int], rests: list[Ids]
) -> Tensor:
    """Returns the hidden states (B, T, C) of `rests`, each continuing its own cached head.

    Args:
        head_cache: cache with a row for each head.
        head_rows: row in `head_cache` of the head of each of `rests`.
        starts: length of the head of each of `rests`.
    """
    ids = _padded(model, rests)  # (B, T)
    cache = KVCache(model, len(rests), max(starts) + ids.size(1))
    for to, layer in zip(cache.layers, head_cache.layers, strict=True):
        to.k[:, :, : max(starts)] = layer.k[head_rows, :, : max(starts)]
        to.v[:, :, : max(starts)] = layer.v[head_rows, :, : max(starts)]
    first = torch.tensor(starts, device=ids.device)[:, None]
    return model.hidden(ids, first + cache.positions[: ids.size(1)], cache)


def _padded(model: GPT, rows: Sequence[Ids]) -> Tensor:
    """Returns the rows as (B, T) on the model's device, padded on the right, where causal attention ignores padding."""
    longest = max(map(len, rows))
    return torch.tensor(
        [[*row, *[0] * (longest - len(row))] for row in rows], device=model.transformer.wte.weight.device
    )


def score(model: GPT, hidden: Tensor, ends: list[int], targets: list[list[list[int]]]) -> list[tuple[float, bool]]:
    """Returns (log-probability, whether it is greedy) of each continuation, row after row.

    Args:
        hidden: hidden states of the model, (B, T, C).
        ends: number of positions in each row that are not padding.
        targets: continuations of each row; the row ends with all tokens of a continuation but its last one.
    """
    counts = [max(map(len, ts)) for ts in targets]  # positions of each row that are scored
    scored = [hidden[b, end - n : end] for b, (end, n) in enumerate(zip(ends, counts, strict=True))]
    logits: Tensor = model.logits(torch.cat(scored)).float()  # (N, V)
    greedy, logprobs, answers = logits.argmax(-1), logits.log_softmax(-1), []
    for end, continuations in zip(torch.tensor(counts).cumsum(0).tolist(), targets, strict=True):
        for continuation in continuations:
            at = slice(end - len(continuation), end)
            target = torch.tensor(continuation, device=hidden.device)
            picked = logprobs[at].gather(1, target[:, None])
            answers.append((picked.sum(), (greedy[at] == target).all()))
    values = torch.stack([value for value, _ in answers]).tolist()  # waits for the device once, not once per answer
    flags = torch.stack([flag for _, flag in answers]).tolist()
    return list(zip(values, flags, strict=True))


def batches(items: Sequence[_Item], size: int) -> Iterator[list[_Item]]:
    """Yields `items` in lists of `size`; the last may be shorter."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
