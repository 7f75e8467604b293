"""Samples in the making: prompts and answers as ids, before they are put end to end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lit_gpt.data.store import IGNORE

Pair = tuple[list[int], list[int]]
"""Ids and labels of a sample."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Ids of a prompt and of what follows it."""

    prompt: list[int]
    answer: list[int]
    """With the token that ends it, if it is `ended`."""
    ended: bool = True
    taught: bool = True
    continues: bool = False
    """Whether it is a further part of the answer in the piece before."""


def total(pieces: Sequence[Piece]) -> int:
    """Tokens of all pieces."""
    return sum(len(piece.prompt) + len(piece.answer) for piece in pieces)


def n_taught(pieces: Sequence[Piece], last_turn_only: bool) -> int:
    """Answers that carry loss."""
    whole = sum(piece.taught and not piece.continues for piece in pieces)
    return min(whole, 1) if last_turn_only else whole


def labelled(pieces: Sequence[Piece], mask_inputs: bool, last_turn_only: bool) -> Pair:
    """Ids and labels of one sample, end to end.

    Args:
        mask_inputs: prompts carry no loss.
        last_turn_only: nor does any answer but the last.
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


def cut_end(pieces: Sequence[Piece], limit: int) -> list[Piece] | None:
    """The first `limit` tokens, of which the last is one that ends an answer; None if no answer begins in them.

    A part of an answer that ends without a token takes the one of the part after it.
    """
    kept: list[Piece] = []
    for i, piece in enumerate(pieces):
        room = limit - total(kept) - len(piece.prompt)
        if room < 2:  # a token of the answer and its end
            break
        if len(piece.answer) > room:
            end = next((p.answer[-1:] for p in pieces[i:] if p.ended), [])
            piece = replace(piece, answer=[*piece.answer[: room - len(end)], *end], ended=bool(end))
        kept.append(piece)
    while kept and not (kept[-1].taught and kept[-1].ended):
        kept.pop()
    return kept or None
