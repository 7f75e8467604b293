"""Parses multiple-choice entries, as in MMLU and ARC: a question, its options and the right one.

The prompt follows MMLU's own evaluation, with lettered options and `Answer:`; the response is the letter.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.values import from_json, kind, listed, require_object, text, unused_keys
from lit_gpt.errors import UserError
from lit_gpt.prompts.turns import Turn

_LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Choice:
    """The schema of multiple-choice entries, by the names of their keys; a `Parse` when called."""

    question: str = "question"
    choices: str | None = "choices"
    """Key of the options: list, object of lists `text` and `label`, or letter -> option; None: one key a letter."""
    answer: str = "answer"
    """Key of the right option: its index from 0, its letter or label, or its text."""

    def __call__(self, entry: Any, file: str, location: str) -> list[Row]:
        where = f"{file}, {location}"
        require_object(entry, where, (self.question, self.answer, *((self.choices,) if self.choices else ("A", "B"))))
        question = text(entry[self.question], where, self.question).strip()
        if self.choices is None:
            labels = _letters_in(entry)
            options = [entry[label] for label in labels]
        else:
            labels, options = _options(from_json(entry[self.choices], where, self.choices), where, self.choices)
        named = zip(labels, options, strict=True)
        options = [text(option, where, f"option {label}").strip() for label, option in named]
        if not 2 <= len(options) <= len(_LETTERS):
            raise UserError(f"{where}: expected 2 to {len(_LETTERS)} options, found {len(options)}")
        right = _right(entry[self.answer], labels, options, f"{where}: {self.answer!r}")
        lines = [f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False)]
        turns = (Turn("user", "\n".join((question, *lines, "Answer:"))), Turn("assistant", _LETTERS[right]))
        read = (self.question, self.answer, self.choices, *(labels if self.choices is None else ()))
        return [Row(turns, file=file, location=location, unused=unused_keys(entry, read))]


def _letters_in(entry: Mapping[str, Any]) -> list[str]:
    """Returns the keys A, B, C ... up to the first that is missing or empty."""
    found: list[str] = []
    for letter in _LETTERS:
        if entry.get(letter) in (None, ""):
            break
        found.append(letter)
    return found


def _options(value: Any, where: str, key: str) -> tuple[list[str], list[Any]]:
    """Returns labels and options of an entry; raises UserError if they are not of a known form."""
    if isinstance(value, dict) and "text" in value:
        options = listed(value["text"], where, f"{key}.text")
        labels = [str(label) for label in listed(value.get("label") or [], where, f"{key}.label")]
        return labels if len(labels) == len(options) else list(_LETTERS[: len(options)]), options
    if isinstance(value, dict):
        return [str(label) for label in value], list(value.values())
    options = listed(value, where, key)
    return list(_LETTERS[: len(options)]), options


def _right(answer: Any, labels: Sequence[str], options: Sequence[str], what: str) -> int:
    """Returns the index of the right option; raises UserError if the answer names none of them."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return answer
    if isinstance(answer, str):
        named_answer = answer.strip()
        for names in (labels, tuple(_LETTERS[: len(options)]), options):
            if named_answer in names:
                return list(names).index(named_answer)
        if named_answer.isdecimal() and int(named_answer) < len(options):
            return int(named_answer)
    shown = repr(answer) if isinstance(answer, str | int | float) else kind(answer)
    raise UserError(
        f"{what} must be the index (from 0), the letter or the text of one of {len(options)} options, found {shown}"
    )
