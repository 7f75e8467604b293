"""Finds training rows of one source that are near-duplicates of validation rows of another."""

from collections.abc import Mapping

import numpy as np

from lit_gpt.data import store
from lit_gpt.data.curate.check.texts import without_common
from lit_gpt.data.curate.mix.sources import Source
from lit_gpt.data.prepare.apart import groups_apart
from lit_gpt.errors import UserError
from lit_gpt.tokenizer import Tokenizer

CHUNK = 20_000
"""Number of training rows whose texts are in memory at once, besides those of the validation sets: as many as there
are of these, if those are more, so that the time is linear in the rows."""


def usable(sources: Mapping[str, Source], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Returns the indices of each source's training rows without near-duplicates of other sources' validation rows.

    Near-duplicates are those of the check: a Jaccard similarity of 5-grams of at least 0.8.

    Raises:
        UserError: nothing is left of a source.
    """
    found = {}
    for name, source in sources.items():
        others = [text for other, s in sources.items() if other != name for text in _texts_of(s.val, tokenizer)]
        found[name] = (~like(source.train, others, tokenizer)).nonzero()[0]
        if not len(found[name]):
            raise UserError(f"--sources: another source has all training rows of {name} for validation; leave one out")
    return found


def like(train: store.Samples, others: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """Returns which training rows are near-duplicates of one of the other texts, (n,) bool."""
    found = np.zeros(len(train), dtype=bool)
    size = max(CHUNK, len(others))
    for start in range(0, len(train) if others else 0, size):
        stop = min(start + size, len(train))
        own = _texts_of(train, tokenizer, range(start, stop))
        firsts = groups_apart(without_common([*others, *own]))
        found[start:stop] = firsts[len(others) :] < len(others)
    return found


def _texts_of(samples: store.Samples, tokenizer: Tokenizer, rows: range | None = None) -> list[str]:
    """Returns the texts of the given rows; None means all rows."""
    return [tokenizer.decode(samples[i][0].tolist()) for i in (range(len(samples)) if rows is None else rows)]
