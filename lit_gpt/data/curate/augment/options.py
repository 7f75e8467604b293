"""Shuffles the options of a multiple-choice question and adapts the letter of the answer."""

import re
from random import Random

OPTION = re.compile(r"(\s*\(?)([A-Z])([.):]\s+)(\S.*)")
"""Matches a line with an option; groups: text before the letter, the letter, text after it, the option."""
_LETTER = re.compile(
    r"(\s*(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)?(?:\s+is)?\s*:?\s*\(?)([A-Z])(\)?[.):]?)", re.I
)
"""Matches an answer given by its letter; groups: text before the letter, the letter, text after it."""
_TIED = re.compile(r"\b(above|below|previous|both|neither|former|latter)\b|\b[A-Z]\b,? (and|or|&) \(?[A-Z]\b", re.I)
"""Matches an option that refers to others, such as "both of the above" or "A and B"."""
_OTHER_LETTERS = re.compile(r"\b[B-HJ-Z]\b|\(A\)|\b(?:option|choice|answer)s?\s+\(?A\b", re.I)
"""Matches the rest of an answer if it refers to options by their letters."""


def shuffle_options(prompt: str, response: str, rng: Random) -> tuple[str, str] | None:
    """Returns prompt and response with the options of the last question shuffled; None where that is not safe.

    It is safe if the last run of lines "A. ...", "B. ..." has two options or more, none of which refers to the others,
    and the response is the letter of one, its text, or both, perhaps with an explanation that names no letter.
    """
    lines = prompt.split("\n")
    block = _last_block(lines)
    if block is None:
        return None
    parts = [match.groups() for i in block if (match := OPTION.fullmatch(lines[i]))]
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
    """Returns the last block of two or more lines that are options A, B, C ...; None if there is none."""
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
    """Returns a random order, for each new position the old one; never the old order itself."""
    order = list(range(n))
    while order == sorted(order):
        rng.shuffle(order)
    return order


def _rename(response: str, letters: list[str], options: list[str], order: list[int]) -> str | None:
    """Returns the response with the new letter of its option; None if it is not clear which option it means."""
    if response.strip() in options:
        return response
    match = _LETTER.match(response)
    if match is None or match[2] not in letters:
        return None
    before, letter, after = match.groups()
    rest = response[match.end() :]
    old = letters.index(letter)
    explanation = rest.strip()
    with_option = explanation.startswith(options[old])
    alone = not explanation or bool(after) or bool(before.strip())
    if not (alone or with_option) or (rest[:1].isalnum()) or _OTHER_LETTERS.search(rest.replace(options[old], "")):
        return None
    return f"{before}{letters[order.index(old)]}{after}{rest}"
