"""Perturbs texts as HELM does to measure robustness: each perturbation is a function of a text and a random generator.

Source: https://arxiv.org/abs/2211.09110, section 4.5, with HELM's mildest settings. Synonyms are not among them: the
libraries that have them download their lists.
"""

import re
from collections.abc import Callable, Mapping
from random import Random

from lit_gpt.data.curate.augment.options import OPTION
from lit_gpt.data.curate.augment.words import CONTRACTED, EXPANDED, MISSPELLED, NEIGHBORS

_TYPO = 0.1
"""Fraction of the letters that are mistyped."""
_MISSPELLING = 0.1
"""Fraction of the words with a common misspelling that are misspelled."""
_MOST_SPACES = 3
"""Most spaces that take the place of one."""


def _pattern(words: Mapping[str, object]) -> re.Pattern[str]:
    """Compiles a pattern that matches any of these words, the longest first, ignoring case."""
    return re.compile(rf"\b({'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})\b", re.IGNORECASE)


_LONG, _SHORT, _CORRECT = _pattern(CONTRACTED), _pattern(EXPANDED), _pattern(MISSPELLED)


def _lowercase(text: str, rng: Random) -> str:
    """Returns the text in lower case."""
    return text.lower()


def _typos(text: str, rng: Random) -> str:
    """Returns the text with some letters replaced by a neighboring key; case stays."""
    return "".join(_mistyped(c, rng) if rng.random() < _TYPO else c for c in text)


def _mistyped(character: str, rng: Random) -> str:
    """Returns a neighboring key of a letter, in its case; any other character as it is."""
    keys = NEIGHBORS.get(character.lower())
    if not keys:
        return character
    key = rng.choice(keys)
    return key.upper() if character.isupper() else key


def _contractions(text: str, rng: Random) -> str:
    """Returns the text with "do not" as "don't" and the like; not before punctuation, where nobody contracts."""
    return re.sub(_LONG.pattern + r"(?= \w)", lambda m: _in_case(CONTRACTED[m[1].lower()], m[1]), text, flags=re.I)


def _expansions(text: str, rng: Random) -> str:
    """Returns the text with "don't" as "do not" and the like."""
    return _SHORT.sub(lambda m: _in_case(EXPANDED[m[1].lower()], m[1]), text.replace("\u2019", "'"))


def _misspellings(text: str, rng: Random) -> str:
    """Returns the text with some words as they are often misspelled."""

    def misspelled(match: re.Match[str]) -> str:
        word = match[1]
        return _in_case(rng.choice(MISSPELLED[word.lower()]), word) if rng.random() < _MISSPELLING else word

    return _CORRECT.sub(misspelled, text)


def _spaces(text: str, rng: Random) -> str:
    """Returns the text with 1 to _MOST_SPACES spaces between words; indentation stays."""
    return re.sub(r"(?<=\S) +(?=\S)", lambda m: " " * rng.randint(1, _MOST_SPACES), text)


def _mild_mix(text: str, rng: Random) -> str:
    """Returns the text after HELM's own mixture: lower case, contractions, misspellings, spaces."""
    return _spaces(_misspellings(_contractions(_lowercase(text, rng), rng), rng), rng)


PERTURBATIONS: dict[str, Callable[[str, Random], str]] = {
    "lowercase": _lowercase,
    "typos": _typos,
    "contractions": _contractions,
    "expansions": _expansions,
    "misspellings": _misspellings,
    "spaces": _spaces,
    "mild_mix": _mild_mix,
}
"""Name that --perturbations takes -> function of a text and a random generator."""


def _in_case(word: str, like: str) -> str:
    """Returns `word` capitalized as `like` is."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def perturb_prompt(text: str, rng: Random, name: str) -> str:
    """Returns a prompt after the named perturbation; lines that are options stay as they are, as in HELM."""
    lines = text.split("\n")
    return "\n".join(line if OPTION.match(line) else PERTURBATIONS[name](line, rng) for line in lines)
