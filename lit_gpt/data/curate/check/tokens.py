"""Checks the token arrays of a split: targets, end-of-sequence tokens, special tokens that come twice."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lit_gpt.data.arrays import let_go
from lit_gpt.data.curate.check.finding import Finding, counted
from lit_gpt.data.store import IGNORE, Samples
from lit_gpt.tokenizer import Tokenizer

_AT_ONCE = 1 << 20
"""Tokens that are in memory at once."""


def check_tokens(split: str, samples: Samples, tokenizer: Tokenizer, end_ids: Sequence[int]) -> list[Finding]:
    """Returns findings about the tokens of a split.

    Args:
        split: name of the split.
        end_ids: tokens that end an answer; empty if the chat template supervises none.
    """
    return [
        _targets(split, samples),
        _ends(split, samples, end_ids),
        *_framing(split, samples, tokenizer, end_ids),
    ]


def _targets(split: str, samples: Samples) -> Finding:
    """Checks that each row has a target; the first token of a row does not count, since nothing predicts it."""
    without = chosen(samples, _without_target)
    if 2 * len(without) > len(samples):
        return Finding(
            "useless",
            f"{split}: {len(without):,} of {len(samples):,} rows have no target, so that most rows teach nothing; "
            "see how they were masked and cut, and prepare them again",
        )
    return counted(split, len(without), len(samples), what="have no target", example=_example(split, without))


def _without_target(samples: Samples) -> np.ndarray:
    """Returns which samples have no target after their first token, (n,) bool."""
    is_target = np.asarray(samples.labels) != IGNORE
    is_target[samples.offsets[:-1][samples.lengths > 0]] = False
    return per_sample(is_target, samples) == 0


def _ends(split: str, samples: Samples, end_ids: Sequence[int]) -> Finding:
    """Checks that each row ends with a supervised end-of-sequence token: without, a model does not learn to stop."""
    if not end_ids:
        return Finding(
            "warning",
            f"{split}: the chat template marks what is taught, and marks no token that ends an answer; a model that "
            "does not stop by itself will not learn to",
        )

    def without(part: Samples) -> np.ndarray:
        found, filled = np.ones(len(part), dtype=bool), part.lengths > 0
        found[filled] = ~np.isin(part.labels[part.offsets[1:][filled] - 1], end_ids)
        return found

    endless, total = chosen(samples, without), len(samples)
    n = total - len(endless)
    n_all = sum(int(np.isin(part.labels, end_ids).sum()) for _, part in _in_parts(samples))
    if 2 * n < total or n == 0:
        return Finding(
            "useless",
            f"{split}: {n:,} of {total:,} rows end with a supervised end of sequence (token "
            f"{' or '.join(map(str, end_ids))}); a model trained so would not stop, prepare the data again",
        )
    if n < total:
        location = _example(split, endless)
        return counted(split, total - n, total, what="do not end with a supervised end of sequence", example=location)
    more = f" and {n_all - n:,} answers before the last one" if n_all > n else ""
    return Finding("ok", f"{split}: a supervised end of sequence ends each of {total:,} rows{more}")


def _framing(split: str, samples: Samples, tokenizer: Tokenizer, end_ids: Sequence[int]) -> list[Finding]:
    """Checks that special tokens do not come twice in a row, and that the begin-of-sequence token is there."""
    found = []

    def count(rows: np.ndarray, what: str) -> None:
        found.append(counted(split, len(rows), len(samples), what=what, example=_example(split, rows)))

    count(doubled(samples, end_ids), "have an end of sequence twice in a row")
    if tokenizer.bos_id is not None and tokenizer.bos_id not in end_ids:
        count(doubled(samples, [tokenizer.bos_id]), "have a begin of sequence twice in a row")
    if tokenizer.use_bos:

        def without(part: Samples) -> np.ndarray:
            found, filled = np.zeros(len(part), dtype=bool), part.lengths > 0
            found[filled] = part.ids[part.offsets[:-1][filled]] != tokenizer.bos_id
            return found

        count(chosen(samples, without), "lack their begin of sequence")
    return found


def _in_parts(samples: Samples) -> Iterator[tuple[int, Samples]]:
    """Yields (index of the first, samples) of about _AT_ONCE tokens at a time; the other tokens stay on the disk."""
    offsets, first = np.asarray(samples.offsets), 0
    while first < len(samples):
        last = max(first + 1, int(offsets.searchsorted(offsets[first] + _AT_ONCE, side="right")) - 1)
        span = slice(offsets[first], offsets[last])
        yield first, Samples(samples.ids[span], samples.labels[span], offsets[first : last + 1] - offsets[first])
        let_go(samples.ids, samples.labels)
        first = last


def chosen(samples: Samples, choose: Callable[[Samples], np.ndarray]) -> np.ndarray:
    """Returns the indices of the samples that `choose` marks, (c,) int64; it is given a part of them at a time."""
    found = [first + choose(part).nonzero()[0] for first, part in _in_parts(samples)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *found])


def per_sample(marked: np.ndarray, samples: Samples) -> np.ndarray:
    """Returns the number of marked positions of each sample, (n,) int64.

    Args:
        marked: (T,) bool over the tokens of all samples.
    """
    counts = np.zeros(len(samples), dtype=np.int64)
    filled = samples.lengths > 0
    if filled.any():
        counts[filled] = np.add.reduceat(marked, samples.offsets[:-1][filled], dtype=np.int64)
    return counts


def doubled(samples: Samples, token_ids: Sequence[int]) -> np.ndarray:
    """Returns the indices of samples in which one of these tokens comes twice in a row."""

    def in_part(part: Samples) -> np.ndarray:
        ids = np.asarray(part.ids)
        twice = np.zeros(len(ids), dtype=bool)
        twice[1:] = (ids[1:] == ids[:-1]) & np.isin(ids[1:], token_ids)
        twice[part.offsets[:-1][part.lengths > 0]] = False  # the first token of a row follows another row's last
        return per_sample(twice, part) > 0

    return chosen(samples, in_part)


def _example(split: str, rows: np.ndarray) -> str:
    """Returns the name of the first of these rows; empty if there are none."""
    return f"sample {rows[0]} of {split}" if len(rows) else ""
