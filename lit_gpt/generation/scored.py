"""Log-probabilities of tokens, with those of the most likely ones, from logits in fp32.

Letters: n positions, C n_embd, V padded vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lit_gpt.generation.request import Scored

_LOGITS = 2**24
"""Most logits that are in memory at once for prompts: those of thousands of positions of a large vocabulary are not."""


def score(logits: Tensor, targets: Sequence[int], n_top: Sequence[int]) -> list[Scored]:
    """Returns the score of a token at each position.

    Args:
        logits: (n, V) fp32.
        targets: the token at each position.
        n_top: how many of the most likely tokens are wanted at each position.
    """
    logprobs = logits.log_softmax(-1)
    most = min(max(1, *n_top, 1), logits.size(-1))
    values, ids = (x.tolist() for x in logprobs.topk(most))
    picked = logprobs.gather(1, torch.tensor(targets, device=logits.device).unsqueeze(1)).flatten().tolist()
    return [
        Scored(target, p, p >= v[0], tuple(zip(i[:k], v[:k], strict=True)))
        for target, p, v, i, k in zip(targets, picked, values, ids, n_top, strict=True)
    ]


def score_in_parts(
    logits_of: Callable[[slice], Tensor], targets: Sequence[int], n_top: Sequence[int], V: int
) -> Iterator[Scored]:
    """Yields the score of a token at each of many positions, with the logits of few of them in memory.

    Args:
        logits_of: function that returns the logits, (n, V), of a slice of the positions.
        V: number of logits at a position.
    """
    step = max(1, _LOGITS // V)
    for i in range(0, len(targets), step):
        part = slice(i, i + step)
        yield from score(logits_of(part).float(), targets[part], n_top[part])
