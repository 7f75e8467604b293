"""The perturbations that HELM measures robustness with, each a function of a text and a source of chance.

https://arxiv.org/abs/2211.09110, section 4.5, with HELM's mildest settings. Synonyms are not among them: the
libraries that have them download their lists.
"""

import re
from collections.abc import Callable, Mapping
from random import Random

from lit_gpt.data.curate.augment.options import OPTION
from lit_gpt.data.curate.augment.words import CONTRACTED, EXPANDED, MISSPELT, NEIGHBOURS

TYPO = 0.1
"""Part of the letters that are mistyped."""
MISSPELLING = 0.1
"""Part of the words with a common misspelling that have it."""
MOST_SPACES = 3


def pattern(words: Mapping[str, object]) -> re.Pattern[str]:
    """Any of these words, the longest first, in any case."""
    return re.compile(rf"\b({'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})\b", re.IGNORECASE)


LONG, SHORT, CORRECT = pattern(CONTRACTED), pattern(EXPANDED), pattern(MISSPELT)


def lowercase(text: str, rng: Random) -> str:
    """All in lower case."""
    return text.lower()


def typos(text: str, rng: Random) -> str:
    """Some letters replaced by a key beside theirs; case stays."""
    return "".join(mistyped(c, rng) if rng.random() < TYPO else c for c in text)


def mistyped(character: str, rng: Random) -> str:
    keys = NEIGHBOURS.get(character.lower())
    if not keys:
        return character
    key = rng.choice(keys)
    return key.upper() if character.isupper() else key


def contractions(text: str, rng: Random) -> str:
    """ "do not" as "don't"; not at the end of a sentence, where nobody contracts."""
    return re.sub(LONG.pattern + r"(?= \w)", lambda m: in_case(CONTRACTED[m[1].lower()], m[1]), text, flags=re.I)


def expansions(text: str, rng: Random) -> str:
    """ "don't" as "do not"."""
    return SHORT.sub(lambda m: in_case(EXPANDED[m[1].lower()], m[1]), text.replace("\u2019", "'"))


def misspellings(text: str, rng: Random) -> str:
    """Some words as they are often misspelt."""

    def misspelt(match: re.Match[str]) -> str:
        word = match[1]
        return in_case(rng.choice(MISSPELT[word.lower()]), word) if rng.random() < MISSPELLING else word

    return CORRECT.sub(misspelt, text)


def spaces(text: str, rng: Random) -> str:
    """Up to MOST_SPACES spaces in the place of each one between words; those that indent a line stay."""
    return re.sub(r"(?<=\S) +(?=\S)", lambda m: " " * rng.randint(1, MOST_SPACES), text)


def mild_mix(text: str, rng: Random) -> str:
    """HELM's own mixture: lower case, contractions, misspellings, spaces."""
    return spaces(misspellings(contractions(lowercase(text, rng), rng), rng), rng)


PERTURBATIONS: dict[str, Callable[[str, Random], str]] = {
    f.__name__: f for f in (lowercase, typos, contractions, expansions, misspellings, spaces, mild_mix)
}


def in_case(word: str, like: str) -> str:
    """`word` in capitals, or with a capital, as `like` is written."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def perturb_prompt(text: str, rng: Random, name: str) -> str:
    """A prompt after the perturbation of that name. Options keep their letters and texts, as in HELM."""
    lines = text.split("\n")
    return "\n".join(line if OPTION.match(line) else PERTURBATIONS[name](line, rng) for line in lines)
