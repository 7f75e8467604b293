"""Multiple choice with its options in another order; the letter of the answer follows."""

import re
from random import Random

OPTION = re.compile(r"(\s*\(?)([A-Z])([.):]\s+)(\S.*)")
"""What is before the letter, the letter, what is after it, the option."""
_LETTER = re.compile(
    r"(\s*(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)?(?:\s+is)?\s*:?\s*\(?)([A-Z])(\)?[.):]?)", re.I
)
"""An answer by its letter: what is before it, the letter, what is after it."""
_TIED = re.compile(r"\b(above|below|previous|both|neither|former|latter)\b|\b[A-Z]\b,? (and|or|&) \(?[A-Z]\b", re.I)
"""Options that speak of others by their place."""
_OTHER_LETTERS = re.compile(r"\b[B-HJ-Z]\b|\(A\)|\b(?:option|choice|answer)s?\s+\(?A\b", re.I)
"""In the rest of an answer: it speaks of options by their letters."""


def shuffle_options(prompt: str, response: str, rng: Random) -> tuple[str, str] | None:
    """Prompt and response after the options of the last question were shuffled; None where that is not safe.

    It is where the last run of lines "A. ...", "B. ..." has two options or more, none of which speaks of the others,
    and the response is the letter of one, its text, or both, perhaps with an explanation that names no letter.
    """
    lines = prompt.split("\n")
    block = _last_block(lines)
    if block is None:
        return None
    parts = [OPTION.fullmatch(lines[i]).groups() for i in block]
    options = [p[3].strip() for p in parts]
    if len(set(options)) < len(options) or any(_TIED.search(option) for option in options):
        return None
    order = _shuffled(len(options), rng)
    renamed = _rename(response, [p[1] for p in parts], options, order)
    if renamed is None:
        return None
    for i, old in zip(block, order, strict=True):
        before, letter, after, _ = parts[i - block[0]]
        lines[i] = f"{before}{letter}{after}{parts[old][3]}"
    return "\n".join(lines), renamed


def _last_block(lines: list[str]) -> range | None:
    """The last lines in a row that are options A, B, C ..., two or more."""
    found, start = None, None
    for i, line in enumerate(lines):
        match = OPTION.fullmatch(line)
        if match and match[2] == "A":
            start = i
        elif start is not None and not (match and match[2] == chr(ord("A") + i - start)):
            start = None
        if start is not None and i > start:
            found = range(start, i + 1)
    return found


def _shuffled(n: int, rng: Random) -> list[int]:
    """The old place of what comes to each place; never all in the old order."""
    order = list(range(n))
    while order == sorted(order):
        rng.shuffle(order)
    return order


def _rename(response: str, letters: list[str], options: list[str], order: list[int]) -> str | None:
    """The response with the letter that its option has now; None if it is not clear what it means."""
    if response.strip() in options:
        return response
    match = _LETTER.match(response)
    if match is None or match[2] not in letters:
        return None
    before, letter, after = match.groups()
    rest = response[match.end() :]
    location = letters.index(letter)
    message = rest.strip()
    with_option = message.startswith(options[location])
    alone = not message or bool(after) or bool(before.strip())
    if not (alone or with_option) or (rest[:1].isalnum()) or _OTHER_LETTERS.search(rest.replace(options[location], "")):
        return None
    return f"{before}{letters[order.index(location)]}{after}{rest}"
