"""What an engine tells: a request's whole answer, of the deltas that came, and figures of its work."""

from collections.abc import Sequence
from typing import NamedTuple

from lit_gpt.generation.request import Delta, Finish, Scored


class Answer(NamedTuple):
    """A request's whole answer: its deltas joined."""

    text: str = ""
    tokens: tuple[Scored, ...] = ()
    prompt: tuple[Scored, ...] = ()
    finish: Finish = "length"
    stop_reason: str | int | None = None
    error: str = ""
    n_cached: int = 0
    continuations: tuple[tuple[Scored, ...], ...] = ()


def joined(deltas: Sequence[Delta]) -> Answer:
    """Returns a whole answer, of all deltas of a request."""
    last = deltas[-1]
    assert last.finish is not None
    return Answer(
        "".join(d.text for d in deltas),
        tuple(t for d in deltas for t in d.tokens),
        tuple(t for d in deltas for t in d.prompt),
        finish=last.finish,
        stop_reason=last.stop_reason,
        error=last.error,
        n_cached=deltas[0].n_cached,
        continuations=last.continuations,
    )


class Stats(NamedTuple):
    """What an engine does and has done."""

    running: int
    waiting: int
    tokens_kept: int
    """Positions of the KV cache that hold prefixes which no row uses."""
    tokens_free: int
    tokens_reused: int
    """Tokens whose keys and values were there already, since the start."""
    tokens_read: int
    """Tokens of prompts that were computed, since the start."""
    tokens_generated: int
    steps: int
