"""Log-probabilities of many continuations, by the engine, which reads once what texts begin alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import Delta, Request, Scored
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer

_KEPT = 4
"""Texts that the KV cache has room for besides those that are read: others may begin like them."""
_CHUNK = 512
"""Fewest tokens that are read in a pass."""


def scores(
    model: GPT,
    tokenizer: Tokenizer,
    asked: Mapping[int, tuple[Sequence[int], int]],
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Iterator[tuple[int, tuple[float, bool]]]:
    """Yields (key, (log-probability, whether it is greedy)) of each continuation as it is computed.

    The engine is made for this call: weights may change between calls, and what it keeps is of these weights.

    Args:
        asked: for each key a text, and the index of the first token of its continuation.
        batch_size: most texts that are read at once.
        autocast: context of every forward pass.

    Raises:
        UserError: a text fails, such as for want of memory.
    """
    if not asked:
        return
    longest = max(len(ids) for ids, _ in asked.values())
    engine = Engine(
        model,
        tokenizer,
        max_rows=batch_size,
        max_tokens=(batch_size + _KEPT) * longest,
        prefill_chunk=max(_CHUNK, batch_size * longest),
        autocast=autocast,
    )
    done: list[tuple[int, Delta]] = []
    n_left = len(asked)
    for i in sorted(asked, key=lambda i: tuple(asked[i][0])):  # those that begin alike are neighbours
        ids, first = asked[i]
        request = Request(ids, 0, prompt_logprobs=0, prompt_logprobs_from=first)
        engine.submit(request, partial(lambda i, delta: done.append((i, delta)), i))
    while n_left:
        engine.step()
        for i, delta in done:
            if delta.error:
                raise UserError(delta.error)
            yield i, _sum(delta.prompt)
        n_left -= len(done)
        done.clear()


def _sum(tokens: Sequence[Scored]) -> tuple[float, bool]:
    """Returns the log-probability of all tokens together, and whether each is greedy."""
    return sum(t.logprob or 0.0 for t in tokens), all(t.is_greedy for t in tokens)
