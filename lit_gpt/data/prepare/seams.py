"""Counts the rows in which a token would span a prompt and its answer, which are tokenized separately."""

import re
from collections.abc import Sequence
from itertools import pairwise

from lit_gpt.prompts import Exchange
from lit_gpt.tokenizer import Tokenizer

_HEAD = re.compile(r"\s{0,16}\S{0,24}\s?")
"""The beginning of an answer that one token may span together with the end of its prompt: its first word, and the
spaces around it."""
_TAIL = 24
"""Characters at the end of a prompt that one token may span together with the beginning of its answer."""
_MOST_SEAMS = 100_000
"""Most seams (end of a prompt, beginning of its answer) whose tokenization is remembered."""


class Seams:
    """The seams of texts that are tokenized separately, and whether one token would span each.

    Several threads may ask at once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[tuple[str, str], bool] = {}

    def n_apart(self, rows: Sequence[Sequence[Exchange]]) -> int:
        """Returns in how many rows one token would span two texts, were they tokenized as a whole.

        That can be a prompt and its answer, or an answer and what comes after it where no token ends it.
        """
        seams = [
            [(e.prompt[-_TAIL:], _head(e.answer or "")) for e in exchanges]
            + [(a.answer[-_TAIL:], _head(b.prompt)) for a, b in pairwise(exchanges) if not a.ended and a.answer]
            for exchanges in rows
        ]
        if len(self.known) > _MOST_SEAMS:
            self.known = {}
        known = self.known  # this one to the end, whichever another thread begins meanwhile
        new = [seam for seam in dict.fromkeys(seam for row in seams for seam in row) if seam not in known]
        tails, heads = ([seam[side] for seam in new] for side in (0, 1))
        unique = list(dict.fromkeys(tails))
        ends = dict(zip(unique, self.tokenizer.encode_batch(unique, bos=False), strict=True))
        starts = self.tokenizer.continue_batch(heads)
        whole = self.tokenizer.encode_batch([tail + head for tail, head in new], bos=False)
        for seam, start, ids in zip(new, starts, whole, strict=True):
            known[seam] = ends[seam[0]] + start != ids
        return sum(any(known[seam] for seam in row) for row in seams)


def _head(text: str) -> str:
    """Returns the part of a text that may merge with the end of the text before it: its first word and spaces."""
    match = _HEAD.match(text)
    return match[0] if match else ""
