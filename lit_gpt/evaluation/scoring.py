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


def passes(
    model: GPT, prefixes: dict[Ids, list[Ids]], batch_size: int
) -> Iterator[tuple[list[Ids], list[int], Tensor]]:
    """Yields (rows, end of each in the states, hidden states (B, T, C)), the longest rows first.

    Rows that begin with the same prefix share its computation: the model reads it once, into a cache, and the
    states that are yielded then leave it out.

    Args:
        prefixes: rows by their prefix, the ids that they begin with.
    """
    shared = {prefix: rows for prefix, rows in prefixes.items() if prefix and len(rows) > 1}
    longest = max((len(row) - len(prefix) for prefix, rows in shared.items() for row in rows), default=0)
    # padding must fit the model's context, and LongRoPE's frequencies for a prefix depend on the whole row's length
    limit = model.rope.long_from or model.config.block_size
    shared = {prefix: rows for prefix, rows in shared.items() if len(prefix) + longest <= limit}
    alone = [row for prefix, rows in prefixes.items() if prefix not in shared for row in rows]
    for batch in batches(sorted(alone, key=len, reverse=True), batch_size):
        yield batch, [len(row) for row in batch], model.hidden(_padded(model, batch))
    for batch_prefixes in batches(sorted(shared, key=len, reverse=True), batch_size):
        prefix_cache = KVCache(model, len(batch_prefixes), len(batch_prefixes[0]))
        model.hidden(_padded(model, batch_prefixes), prefix_cache.positions, prefix_cache)
        rows = [(n, len(prefix), row) for n, prefix in enumerate(batch_prefixes) for row in shared[prefix]]
        for batch in batches(sorted(rows, key=lambda r: len(r[2]) - r[1], reverse=True), batch_size):
            prefix_rows, starts, whole = map(list, zip(*batch, strict=True))
            suffixes = [row[start:] for row, start in zip(whole, starts, strict=True)]
            yield (
                whole,
                [len(suffix) for suffix in suffixes],
                _continue_after(model, prefix_cache, prefix_rows, starts=starts, suffixes=suffixes),
            )


def _continue_after(
    model: GPT, prefix_cache: KVCache, prefix_rows: list[int], starts: list[int], suffixes: list[Ids]
) -> Tensor:
    """Returns the hidden states (B, T, C) of `suffixes`, each continuing its own cached prefix.

    Args:
        prefix_cache: cache with a row for each prefix.
        prefix_rows: row in `prefix_cache` of the prefix of each of `suffixes`.
        starts: length of the prefix of each of `suffixes`.
    """
    ids = _padded(model, suffixes)  # (B, T)
    cache = KVCache(model, len(suffixes), max(starts) + ids.size(1))
    for to, layer in zip(cache.layers, prefix_cache.layers, strict=True):
        to.k[:, :, : max(starts)] = layer.k[prefix_rows, :, : max(starts)]
        to.v[:, :, : max(starts)] = layer.v[prefix_rows, :, : max(starts)]
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
