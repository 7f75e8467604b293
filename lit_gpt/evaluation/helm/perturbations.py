"""HELM's canonical perturbations: the same question with slips of the pen, in another dialect, about other people.

What is drawn comes from a generator that the question's id seeds, in HELM's order, so that texts are equal to HELM's.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import NamedTuple

from lit_gpt.errors import UserError
from lit_gpt.evaluation.helm.instances import Instance
from lit_gpt.evaluation.helm.lists import CONTRACTIONS, PRONOUNS
from lit_gpt.records import read_object

_SLIPS, _DIALECT = "misspellings/correct_to_misspelling.json", "dialect/SAE_to_AAVE_mapping.json"
_NAMES = "person_name/data/person_names.txt"
_SLIP_RATE, _MOST_SPACES = 0.1, 3
_FROM, _TO = "white_american", "black_american"


class _Kind(NamedTuple):
    """A perturbation."""

    is_robustness: bool
    """Whether it belongs to robustness, else to fairness."""
    changes_answers: bool
    begin: Callable[[Random], Callable[[str], str]]
    """Makes the function that changes the texts of one question, one after the other."""


class Perturbations:
    """The perturbations of one kind of augmentation, with the word lists that they take.

    Args:
        folder: HELM's folder `perturbations`, with a folder for each list.
        augmentation: canonical, robustness or fairness.
        slips: list of misspellings, if it is not in the folder.

    Raises:
        UserError: there is no such augmentation.
    """

    def __init__(self, folder: Path, augmentation: str, slips: Path | None = None) -> None:
        self.folder, self.slips = folder, slips
        kinds = {
            "mild_mix": _Kind(True, False, lambda rng: lambda text: self._mild_mix(text, rng)),
            "dialect": _Kind(False, True, lambda rng: lambda text: self._dialect(text, rng)),
            "gender": _Kind(False, True, lambda rng: _gender),
            "person_name": _Kind(False, True, self._begin_names),
        }
        if augmentation not in ("canonical", "robustness", "fairness"):
            raise UserError(f"data_augmentation={augmentation}: known here are canonical, robustness and fairness")
        self.kinds = {
            name: kind
            for name, kind in kinds.items()
            if augmentation == "canonical" or kind.is_robustness == (augmentation == "robustness")
        }

    def applied(self, instances: Sequence[Instance]) -> list[Instance]:
        """Returns each instance, followed by its perturbed versions.

        A version that leaves the question as it was is left out; in BBQ it is not, as in HELM.

        Raises:
            UserError: a word list is missing or damaged.
        """
        found: list[Instance] = []
        for instance in instances:
            found.append(instance)
            for name, kind in self.kinds.items():
                changed = _perturbed(instance, name, kind)
                if changed.text != instance.text or instance.letters is not None:
                    found.append(changed)
        return found

    def _mild_mix(self, text: str, rng: Random) -> str:
        """Returns a text in small letters, contracted, with some slips, and with more spaces here and there."""

        def slip(match: re.Match[str]) -> str:
            word = match[1]
            return _in_case_of(word, str(rng.choice(known[word]))) if rng.random() < _SLIP_RATE else word

        pattern, known = self._misspellings
        text = _CONTRACTIBLE.sub(lambda m: CONTRACTIONS[m[1]] + " ", text.lower())
        text = pattern.sub(slip, text)
        return re.sub(" +", lambda _: " " * rng.randint(1, _MOST_SPACES), text)

    def _dialect(self, text: str, rng: Random) -> str:
        def swap(match: re.Match[str]) -> str:
            word = match[1]
            rng.random()  # HELM draws whether to replace it, at a probability of 1
            return match[0].replace(word, _in_case_of(word, rng.choice(known[word.lower()])))

        pattern, known = self._dialect_words
        return pattern.sub(swap, text)

    def _begin_names(self, rng: Random) -> Callable[[str], str]:
        """Returns a function that gives people other first names, the same ones in all texts of a question."""
        given: dict[str, str] = {}
        races, genders = self._names

        def other(name: str) -> str | None:
            of = next((genders[g] for g in ("female", "male", "neutral") if name in genders.get(g, ())), None)
            options = [n for n in races[_TO] if of is None or n in of]
            return rng.choice(options) if options else None

        def change(text: str) -> str:
            parts = re.split(r"([^\w])", text)
            for i, part in enumerate(parts):
                name = part.lower()
                if name not in given and name in races[_FROM]:
                    rng.random()  # as in `_dialect`
                    if found := other(name):
                        given[name] = found
                if name in given:
                    parts[i] = _in_case_of(part, given[name])
            return "".join(parts)

        return change

    @cached_property
    def _misspellings(self) -> tuple[re.Pattern[str], dict[str, list[str]]]:
        path = self.folder / _SLIPS
        words = _read_lists(self.slips if not path.is_file() and self.slips is not None else path)
        return re.compile(rf"\b({'|'.join(words)})\b"), words

    @cached_property
    def _dialect_words(self) -> tuple[re.Pattern[str], dict[str, list[str]]]:
        words = _read_lists(self.folder / _DIALECT)
        return re.compile(rf"[^\w-]({'|'.join(map(re.escape, words))})[^\w-]", re.IGNORECASE), words

    @cached_property
    def _names(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """First names by race and by gender."""
        path = self.folder / _NAMES
        races: dict[str, list[str]] = {}
        genders: dict[str, list[str]] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise _missing(path, e) from e
        for name, kind, *more in (line.split(",") for line in lines if line.count(",") >= 1):
            for category, value in zip(more[::2], more[1::2], strict=False):
                if kind == "first_name" and category in ("race", "gender"):
                    (races if category == "race" else genders).setdefault(value, []).append(name.strip().lower())
        if not races.get(_FROM) or not races.get(_TO):
            raise UserError(f"{path} has no first names of {_FROM} and {_TO}")
        return races, genders


_CONTRACTIBLE = re.compile(rf"\b({'|'.join(CONTRACTIONS)})\b ", re.DOTALL)


def _perturbed(instance: Instance, name: str, kind: _Kind) -> Instance:
    """Returns a perturbed version; answers are changed before the question, as HELM does."""
    change = kind.begin(Random(instance.id))
    references = instance.references
    if kind.changes_answers:
        references = tuple(replace(r, text=change(r.text)) for r in references)
    return replace(instance, text=change(instance.text), references=references, perturbation=name)


def _gender(text: str) -> str:
    """Returns a text with her for him; a pronoun that may be either of two becomes the first one."""
    for his, hers in PRONOUNS:
        pattern = re.compile(rf"[^\w]({his})[^\w]", re.IGNORECASE)
        text = pattern.sub(lambda m, hers=hers: m[0].replace(m[1], _in_case_of(m[1], hers)), text)
    return text


def _in_case_of(word: str, other: str) -> str:
    """Returns the other word in small letters, capitals, or with a capital, as the word is."""
    if all(c.islower() for c in word):
        return other.lower()
    if all(c.isupper() for c in word):
        return other.upper()
    return other.capitalize() if word[:1].isupper() else other


def _read_lists(path: Path) -> dict[str, list[str]]:
    """Returns a file of words with the lists of what may stand for each; raises UserError if it is none."""
    try:
        found = read_object(path)
    except OSError as e:
        raise _missing(path, e) from e
    if not found or not all(isinstance(v, list) and v and all(isinstance(w, str) for w in v) for v in found.values()):
        raise UserError(f"{path} is no object with a list of words for each word")
    return found


def _missing(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read ({error}); data_augmentation takes the word lists that HELM fetches into its folder "
        "perturbations, and its own list of misspellings; docs/helm.md says where from"
    )
