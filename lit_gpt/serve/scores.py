"""Log-probabilities in the shapes of OpenAI's two endpoints and of vLLM."""

import codecs
from collections.abc import Sequence
from typing import Any

from lit_gpt.generation.request import Scored
from lit_gpt.serve.pieces import Pieces

_LEAST = -9999.0
"""What stands for the log-probability of what cannot be: JSON has no infinity."""


class Counter:
    """Counts the characters of a text whose tokens come one after the other.

    Args:
        skips_special: whether the text leaves special tokens out.
    """

    def __init__(self, pieces: Pieces, skips_special: bool = True) -> None:
        self.pieces, self.skipped = pieces, pieces.special if skips_special else frozenset()
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.n = 0

    def offset(self, token_id: int) -> int:
        """Returns the number of whole characters before a token, which is the next one."""
        before = self.n
        if token_id not in self.skipped:
            self.n += len(self.decoder.decode(self.pieces.of(token_id)))
        return before


def finite(logprob: float) -> float:
    """Returns a log-probability as JSON can write it."""
    return max(logprob, _LEAST)


def top_of(token: Scored, pieces: Pieces) -> dict[str, float]:
    """Returns the log-probabilities of the most likely tokens and of the token itself, by their texts.

    Of several tokens with the same text, the most likely one counts: the maximum is always that of the arg-max.
    """
    found: dict[str, float] = {}
    for i, logprob in token.top:
        found.setdefault(pieces.text(i), finite(logprob))
    if token.logprob is not None:
        found.setdefault(pieces.text(token.id), finite(token.logprob))
    return found


def completion_logprobs(tokens: Sequence[Scored], pieces: Pieces, counter: Counter) -> dict[str, Any]:
    """Returns log-probabilities as /v1/completions has them; those of the first token of a prompt are null."""
    return {
        "tokens": [pieces.text(t.id) for t in tokens],
        "token_logprobs": [None if t.logprob is None else finite(t.logprob) for t in tokens],
        "top_logprobs": [None if t.logprob is None else top_of(t, pieces) for t in tokens],
        "text_offset": [counter.offset(t.id) for t in tokens],
    }


def chat_logprobs(tokens: Sequence[Scored], pieces: Pieces) -> dict[str, Any]:
    """Returns log-probabilities as /v1/chat/completions has them."""

    def shown(token_id: int, logprob: float | None) -> dict[str, Any]:
        value = 0.0 if logprob is None else finite(logprob)
        return {"token": pieces.text(token_id), "logprob": value, "bytes": list(pieces.of(token_id))}

    content = [shown(t.id, t.logprob) | {"top_logprobs": [shown(*other) for other in t.top]} for t in tokens]
    return {"content": content, "refusal": None}


def prompt_logprobs(tokens: Sequence[Scored], pieces: Pieces) -> list[dict[str, Any] | None]:
    """Returns the log-probabilities of a prompt as vLLM has them; the rank of a token that is not among the most likely
    ones is null."""
    found: list[dict[str, Any] | None] = []
    for token in tokens:
        if token.logprob is None:
            found.append(None)
            continue
        ranked: list[tuple[int, float, int | None]] = [
            (i, logprob, rank + 1) for rank, (i, logprob) in enumerate(token.top)
        ]
        if token.id not in {i for i, _, _ in ranked}:
            ranked.append((token.id, token.logprob, 1 if token.is_greedy else None))
        found.append({str(i): {"logprob": finite(p), "rank": r, "decoded_token": pieces.text(i)} for i, p, r in ranked})
    return found
