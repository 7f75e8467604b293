"""Training rows that would give a validation away."""

from collections.abc import Mapping

import numpy as np

from lit_gpt.data import store
from lit_gpt.data.curate.check.texts import without_common
from lit_gpt.data.curate.mix.sources import Source
from lit_gpt.data.prepare.apart import groups_apart
from lit_gpt.errors import UserError
from lit_gpt.tokenizer import Tokenizer

CHUNK = 20_000
"""Rows whose texts are in memory at a time, besides those of the validation sets."""


def usable(sources: Mapping[str, Source], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """For each source its training rows, by index, without those that are nearly the same as a row that another source
    validates on: 80 % of runs of five characters, as the check counts them.

    Raises:
        UserError: a source has no other rows.
    """
    found = {}
    for name, source in sources.items():
        others = [text for other, s in sources.items() if other != name for text in _texts_of(s.val, tokenizer)]
        found[name] = (~like(source.train, others, tokenizer)).nonzero()[0]
        if not len(found[name]):
            raise UserError(f"--sources: another source has all training rows of {name} for validation; leave one out")
    return found


def like(train: store.Samples, others: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """(n,) bool: the training rows that are nearly the same as one of the other texts."""
    found = np.zeros(len(train), dtype=bool)
    for start in range(0, len(train) if others else 0, CHUNK):
        stop = min(start + CHUNK, len(train))
        own = _texts_of(train, tokenizer, range(start, stop))
        firsts = groups_apart(without_common([*others, *own]))
        found[start:stop] = firsts[len(others) :] < len(others)
    return found


def _texts_of(samples: store.Samples, tokenizer: Tokenizer, rows: range | None = None) -> list[str]:
    """The texts of the rows, of all if none are named."""
    return [tokenizer.decode(samples[i][0].tolist()) for i in (range(len(samples)) if rows is None else rows)]
