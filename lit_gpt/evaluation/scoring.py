"""Log-probabilities of many continuations, by the engine, which reads once what texts begin alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.evaluation.rows import rows_that_fit
from lit_gpt.generation.batching.runs import SharedRun
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import Delta, Request, Scored
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer

RUN = "run"
"""Name of the one run that an engine of an evaluation may have."""
_KEPT = 4
"""Texts that the KV cache has room for besides those that are read: others may begin like them."""
_CHUNK = 512
"""Most tokens that are read in a pass: more of them are no faster."""
_TOGETHER = 1024
"""Most tokens of continuations of one text that are read as one row."""
_Group = tuple[Sequence[int], dict[tuple[int, ...], list[int]]]
"""A text, and for each of its continuations the keys of those who ask."""


def scores(
    model: GPT,
    tokenizer: Tokenizer,
    asked: Mapping[int, tuple[Sequence[int], int]],
    batch_size: int | None,
    autocast: Callable[[], AbstractContextManager[Any]],
    run: SharedRun | None = None,
) -> Iterator[tuple[int, tuple[float, bool]]]:
    """Yields (key, (log-probability, whether it is greedy)) of each continuation as it is computed.

    The engine is made for this call: weights may change between calls, and what it keeps is of these weights.

    Args:
        asked: for each key a text, and the index of the first token of its continuation.
        batch_size: most texts with their continuations that are read at once; None takes what fits.
        autocast: context of every forward pass.
        run: a LoRA run that answers in place of `model`, which is its base.

    Raises:
        UserError: a text fails, such as for want of memory.
    """
    if not asked:
        return
    together = _TOGETHER if model.config.mixers is None else 0
    groups = _grouped(asked, model.rope.long_from, together)
    longest = max(len(text) + sum(map(len, answers)) for text, answers in groups)
    batch_size = rows_that_fit(model, longest, len(groups)) if batch_size is None else batch_size
    engine = Engine(
        model,
        tokenizer,
        runs={} if run is None else {RUN: run},
        max_rows=batch_size,
        max_tokens=(batch_size + _KEPT) * longest,
        prefill_chunk=_CHUNK,
        autocast=autocast,
    )
    done: list[tuple[_Group, Delta]] = []
    for group in groups:
        engine.submit(_request(group, run and RUN), partial(lambda group, delta: done.append((group, delta)), group))
    n_left = len(groups)
    while n_left:
        engine.step()
        for (_, answers), delta in done:
            if delta.error:
                raise UserError(delta.error)
            for keys, tokens in zip(answers.values(), delta.continuations or [delta.prompt], strict=True):
                yield from ((key, _sum(tokens)) for key in keys)
        n_left -= len(done)
        done.clear()


def _request(group: _Group, run: str | None) -> Request:
    """Returns what is asked of the engine; a text with one continuation is one text, which others may begin like."""
    text, answers = group
    if len(answers) > 1:
        return Request(text, 0, run=run, continuations=tuple(answers))
    (answer,) = answers
    return Request([*text, *answer], 0, run=run, prompt_logprobs=0, prompt_logprobs_from=len(text))


def _grouped(
    asked: Mapping[int, tuple[Sequence[int], int]], long_from: int | None, together: int = _TOGETHER
) -> list[_Group]:
    """Returns the texts with their continuations; texts that begin alike are neighbours.

    Args:
        long_from: length from which on LongRoPE has other frequencies: longer texts share nothing with shorter ones.
        together: most tokens of continuations that are one request; 0 where a layer's state has no branches.
    """
    found: dict[tuple[tuple[int, ...], bool], list[dict[tuple[int, ...], list[int]]]] = {}
    for key, (ids, first) in asked.items():
        text, answer = tuple(ids[:first]), tuple(ids[first:])
        is_long = long_from is not None and len(ids) - 1 > long_from
        parts = found.setdefault((text, is_long), [{}])
        if (
            not any(answer in part for part in parts)
            and sum(map(len, parts[-1])) + len(answer) > together
            and parts[-1]
        ):
            parts.append({})
        owner = next((part for part in parts if answer in part), parts[-1])
        owner.setdefault(answer, []).append(key)
    return [(text, part) for (text, _), parts in sorted(found.items()) for part in parts]


def _sum(tokens: Sequence[Scored]) -> tuple[float, bool]:
    """Returns the log-probability of all tokens together, and whether each is greedy."""
    return sum(t.logprob or 0.0 for t in tokens), all(t.is_greedy for t in tokens)
