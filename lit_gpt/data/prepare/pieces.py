"""Joins the token ids of prompts and answers into a sample with labels, truncated if need be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lit_gpt.data.store import IGNORE

Pair = tuple[list[int], list[int]]
"""Token ids and labels of a sample."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The token ids of a prompt and of its answer."""

    prompt: list[int]
    answer: list[int]
    """Token ids of the answer, with the token that ends it if it is `ended`."""
    ended: bool = True
    taught: bool = True
    """Whether the answer is supervised."""
    continues: bool = False
    """Whether the answer continues the one of the piece before."""


def total(pieces: Sequence[Piece]) -> int:
    """Returns the number of tokens of all pieces."""
    return sum(len(piece.prompt) + len(piece.answer) for piece in pieces)


def n_supervised(pieces: Sequence[Piece], last_turn_only: bool) -> int:
    """Returns the number of supervised answers."""
    whole = sum(piece.taught and not piece.continues for piece in pieces)
    return min(whole, 1) if last_turn_only else whole


def labeled(pieces: Sequence[Piece], mask_inputs: bool, last_turn_only: bool) -> Pair:
    """Returns ids and labels of the sample that the pieces make up, laid end to end.

    Args:
        mask_inputs: leave prompts without loss.
        last_turn_only: supervise the last answer only.
    """
    ids: list[int] = []
    labels: list[int] = []
    last = max(i for i, piece in enumerate(pieces) if not piece.continues)
    for i, piece in enumerate(pieces):
        taught = piece.taught and (i >= last or not last_turn_only)
        ids += [*piece.prompt, *piece.answer]
        labels += [IGNORE] * len(piece.prompt) if mask_inputs else piece.prompt
        labels += piece.answer if taught else [IGNORE] * len(piece.answer)
    return ids, labels


def truncate_end(pieces: Sequence[Piece], limit: int) -> list[Piece] | None:
    """Returns the pieces truncated to `limit` tokens, the last of them one that ends an answer; None if none is left.

    Where the truncated answer has no token that ends it, it takes the one of the next piece that has one.
    """
    kept: list[Piece] = []
    used = 0
    for i, piece in enumerate(pieces):
        room = limit - used - len(piece.prompt)
        if room < 2:  # a token of the answer and its end
            break
        if len(piece.answer) > room:
            end = next((p.answer[-1:] for p in pieces[i:] if p.ended), [])
            piece = replace(piece, answer=[*piece.answer[: room - len(end)], *end], ended=bool(end))
        kept.append(piece)
        used += len(piece.prompt) + len(piece.answer)
    while kept and not (kept[-1].taught and kept[-1].ended):
        kept.pop()
    return kept or None
