"""Multiple choice: a question, its options and which of them is right, as MMLU, ARC and their kin have it.

The row asks as MMLU's own evaluation does, with lettered options and `Answer:`, and is answered with the letter.
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
    """How the entries of a file hold a question with options. A `parse`, when called."""

    question: str = "question"
    choices: str | None = "choices"
    """Key of the options: a list, an object of lists `text` and `label`, or letter -> option. None: a key a letter."""
    answer: str = "answer"
    """Key of the right one: its index from 0 on, its letter or label, or its text."""

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
    """The keys A, B, C ... as far as they go on and hold something."""
    found: list[str] = []
    for letter in _LETTERS:
        if entry.get(letter) in (None, ""):
            break
        found.append(letter)
    return found


def _options(value: Any, where: str, key: str) -> tuple[list[str], list[Any]]:
    """Labels and options. Raises: UserError."""
    if isinstance(value, dict) and "text" in value:
        options = listed(value["text"], where, f"{key}.text")
        labels = [str(label) for label in listed(value.get("label") or [], where, f"{key}.label")]
        return labels if len(labels) == len(options) else list(_LETTERS[: len(options)]), options
    if isinstance(value, dict):
        return [str(label) for label in value], list(value.values())
    options = listed(value, where, key)
    return list(_LETTERS[: len(options)]), options


def _right(answer: Any, labels: Sequence[str], options: Sequence[str], what: str) -> int:
    """The place of the right option. Raises: UserError if the answer names none."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return answer
    if isinstance(answer, str):
        message = answer.strip()
        for names in (labels, tuple(_LETTERS[: len(options)]), options):
            if message in names:
                return list(names).index(message)
        if message.isdecimal() and int(message) < len(options):
            return int(message)
    shown = repr(answer) if isinstance(answer, str | int | float) else kind(answer)
    raise UserError(
        f"{what} must be the index (from 0), the letter or the text of one of {len(options)} options, found {shown}"
    )
