"""Prints samples in readable form: what the model sees, and which part of it is supervised."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from lit_gpt.data.store import IGNORE, Samples
from lit_gpt.tokenizer import Tokenizer

_SEEN, _SUPERVISED = "  | ", "  > "
_GREEN, _PLAIN = "\033[32m", "\033[0m"
_MOST_LINES = 8
"""Most lines of a run of prompt or targets that are shown."""
_LONGEST_LINE = 110
"""Most characters of a line; a longer one is shortened in the middle."""
_TAIL = 25
"""Characters at the end of a shortened line."""
_FIRST_RUNS, _LAST_RUNS = 16, 8
"""Runs of prompt or targets that are shown at the beginning and at the end of a long conversation."""


def spread_by_length(lengths: np.ndarray, n: int) -> list[int]:
    """Returns n samples spread from short to long, leaving out the shortest and longest tenths."""
    order = np.argsort(lengths, kind="stable")
    quantiles = [0.5] if n == 1 else np.linspace(0.1, 0.9, n)
    return list(dict.fromkeys(int(order[round(q * (len(order) - 1))]) for q in quantiles)) if n else []


def show(split: str, samples: Samples, i: int, tokenizer: Tokenizer, color: bool) -> list[str]:
    """Returns lines that show sample i, with supervised parts on lines and with a mark of their own."""
    ids, labels = samples[i]
    is_target = labels != IGNORE
    is_target[:1] = False
    lines = [f"sample {i} of {split}: {len(ids):,} tokens, {int(is_target.sum()):,} of them targets"]
    edges = [0, *(np.flatnonzero(np.diff(is_target)) + 1).tolist(), len(ids)] if len(ids) else [0]
    hidden = range(_FIRST_RUNS, len(edges) - 1 - _LAST_RUNS)
    names = _special_names(np.unique(ids).tolist(), tokenizer)
    shown_to, before = 0, ""
    for n, (start, end) in enumerate(pairwise(edges)):
        if n in hidden:
            lines += [f"  ... ({len(hidden):,} more parts)"] if n == hidden.start else []
            continue
        if shown_to != start:
            before = _readable(ids[:start], names, tokenizer)
        whole = _readable(ids[:end], names, tokenizer)
        supervised = bool(is_target[start])
        first, last = (_GREEN, _PLAIN) if supervised and color else ("", "")
        mark = _SUPERVISED if supervised else _SEEN
        lines += [f"{first}{mark}{line}{last}" for line in _clipped(whole[len(before) :])]
        shown_to, before = end, whole
    return lines


def _clipped(text: str) -> list[str]:
    """Returns the lines of a text, shortened if they are many or long."""
    lines = text.split("\n")
    if len(lines) > 1 and not lines[-1]:
        lines.pop()
    hidden = len(lines) - _MOST_LINES
    if hidden > 1:
        lines = [*lines[: _MOST_LINES - 2], f"... ({hidden + 1:,} lines)", lines[-1]]
    return [
        line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - _TAIL]} ... {line[-_TAIL:]}" for line in lines
    ]


def _readable(ids: np.ndarray, names: Mapping[int, str], tokenizer: Tokenizer) -> str:
    """Returns the text of ids, with special tokens by name."""
    text, start = "", 0
    for at in np.flatnonzero(np.isin(ids, list(names))).tolist():
        text += tokenizer.decode(ids[start:at].tolist()) + names[int(ids[at])]
        start = at + 1
    return text + tokenizer.decode(ids[start:].tolist())


def _special_names(tokens: list[int], tokenizer: Tokenizer) -> dict[int, str]:
    """Returns the names of those of the tokens that `decode` leaves out."""
    before = tokenizer.encode("a", bos=False)  # after a text: alone, a token for a space would have no text either
    text = tokenizer.decode(before)
    left_out = [token for token in tokens if tokenizer.decode([*before, token]) == text]
    return {token: tokenizer.id_to_token(token) or f"<{token}>" for token in left_out}
