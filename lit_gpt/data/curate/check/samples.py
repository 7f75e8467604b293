"""Samples as a person can read them: what the model sees, and what of it the model learns to write."""

from itertools import groupby

import numpy as np

from lit_gpt.data.store import IGNORE, Samples
from lit_gpt.tokenizer import Tokenizer

_SEEN, _LEARNED = "  | ", "  > "
_GREEN, _PLAIN = "\033[32m", "\033[0m"
_MOST_LINES = 8
"""Lines of a piece that are shown."""
_LONGEST_LINE = 110
_TAIL = 25


def chosen(lengths: np.ndarray, n: int) -> list[int]:
    """n samples from the short to the long ones, the shortest and longest tenths aside."""
    order = np.argsort(lengths, kind="stable")
    locations = [0.5] if n == 1 else np.linspace(0.1, 0.9, n)
    return list(dict.fromkeys(int(order[round(p * (len(order) - 1))]) for p in locations)) if n else []


def show(split: str, samples: Samples, i: int, tokenizer: Tokenizer, colour: bool) -> list[str]:
    """Lines that show sample i, those to be learned with a mark of their own; a line ends where learning begins."""
    ids, labels = samples[i]
    taught = labels != IGNORE
    taught[:1] = False
    lines = [f"sample {i} of {split}: {len(ids):,} tokens, {int(taught.sum()):,} of them targets"]
    position, before = 0, ""
    for learned, run in groupby(taught.tolist()):
        end = position + len(list(run))
        whole = _readable(ids[:end], tokenizer)
        start, stop = (_GREEN, _PLAIN) if learned and colour else ("", "")
        mark = _LEARNED if learned else _SEEN
        lines += [f"{start}{mark}{line}{stop}" for line in _clipped(whole[len(before) :])]
        position, before = end, whole
    return lines


def _clipped(text: str) -> list[str]:
    """The lines of a piece; of many or long ones, the beginning."""
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
    """The text of ids, with special tokens by their names."""
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
    """The name of a token that `decode` leaves out; None of any other."""
    before = tokenizer.encode("a", bos=False)  # alone, a token for a space has no text, either
    if tokenizer.decode([*before, token]) != tokenizer.decode(before):
        return None
    return tokenizer.id_to_token(token) or f"<{token}>"
