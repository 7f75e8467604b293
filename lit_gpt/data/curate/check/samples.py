"""Prints samples in readable form: what the model sees, and which part of it is supervised."""

from itertools import groupby

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
    position, before = 0, ""
    for supervised, run in groupby(is_target.tolist()):
        end = position + len(list(run))
        whole = _readable(ids[:end], tokenizer)
        start, stop = (_GREEN, _PLAIN) if supervised and color else ("", "")
        mark = _SUPERVISED if supervised else _SEEN
        lines += [f"{start}{mark}{line}{stop}" for line in _clipped(whole[len(before) :])]
        position, before = end, whole
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


def _readable(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """Returns the text of ids, with special tokens by name."""
    text = ""
    plain: list[int] = []
    for token in ids.tolist():
        name = _special_name(token, tokenizer)
        if name is None:
            plain.append(token)
            continue
        text += tokenizer.decode(plain) + name
        plain = []
    return text + tokenizer.decode(plain)


def _special_name(token: int, tokenizer: Tokenizer) -> str | None:
    """Returns the name of a token that `decode` leaves out; None for any other."""
    before = tokenizer.encode("a", bos=False)  # after a text: alone, a token for a space would have no text either
    if tokenizer.decode([*before, token]) != tokenizer.decode(before):
        return None
    return tokenizer.id_to_token(token) or f"<{token}>"
