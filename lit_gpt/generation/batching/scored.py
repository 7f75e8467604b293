"""Log-probabilities of tokens, with those of the most likely ones, from logits in fp32.

Letters: n positions, C n_embd, V padded vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_gpt.generation.request import Scored

_LOGITS = 2**24
"""Most logits that are in memory at once for prompts: those of thousands of positions of a large vocabulary are not."""


def score(
    logits: Tensor, targets: Sequence[int], n_top: Sequence[int], lines: Sequence[int] | None = None
) -> list[Scored]:
    """Returns the score of each of `targets`.

    Args:
        logits: (n, V) fp32.
        n_top: how many of the most likely tokens are wanted beside each target.
        lines: the line of the logits that each target is scored with; by default, targets and lines are paired.
    """
    logprobs = logits.log_softmax(-1)
    lines = range(len(targets)) if lines is None else lines
    values, ids = (x.tolist() for x in logprobs.topk(min(max(1, *n_top, 1), logits.size(-1))))
    at = (torch.tensor(list(x), device=logits.device) for x in (lines, targets))
    picked = logprobs[tuple(at)].tolist()
    return [
        Scored(target, p, p >= values[i][0], tuple(zip(ids[i][:k], values[i][:k], strict=True)))
        for target, p, i, k in zip(targets, picked, lines, n_top, strict=True)
    ]


class Wanted(NamedTuple):
    """A token to be scored."""

    place: int
    """Index of the hidden state that it follows."""
    target: int
    n_top: int
    run: str | None


def score_in_parts(
    logits_of: Callable[[list[int], list[str | None]], Tensor], wanted: Sequence[Wanted], V: int
) -> Iterator[Scored]:
    """Yields the score of each of many tokens, with the logits of few places in memory, and of each place once.

    Args:
        logits_of: function that returns the logits, (n, V), of n places and their runs.
        wanted: those of a place are neighbours.
        V: number of logits of a place.
    """
    step = max(1, _LOGITS // V)
    for begin in range(0, len(wanted), step):
        part = wanted[begin : begin + step]
        runs = {w.place: w.run for w in part}
        lines = {place: i for i, place in enumerate(runs)}
        logits = logits_of(list(runs), list(runs.values())).float()
        yield from score(logits, [w.target for w in part], [w.n_top for w in part], [lines[w.place] for w in part])
