"""Converts MMLU's rows, in the formats in which they circulate, to those of `cais/mmlu`, which lm-eval's tasks read.

The archive that its authors published (https://github.com/hendrycks/test) has a CSV file per subject and split, without
a header: question, four answers, the letter of the right one.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_gpt.data.prepare.entries import decoded_lines, opened, read_objects, table_rows
from lit_gpt.errors import UserError

_LETTERS = "ABCD"
_HEADER = ("question", *_LETTERS, "answer")
_QUESTION, _ANSWER = ("question", "input", "prompt"), ("answer", "target")


def is_mmlu(config: Mapping[str, Any]) -> bool:
    """Returns whether a task's configuration asks for rows of MMLU."""
    return config.get("dataset_path") in ("cais/mmlu", "hails/mmlu_no_train")


def read_mmlu(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (location, row) of every question, with `question`, `choices`, the number of the `answer`, and other keys.

    Raises:
        UserError: a row has no question, not four choices, or no right answer; the message gives its location.
    """
    for where, row in _table(path) if path.suffix == ".csv" else read_objects(path):
        if not isinstance(row, dict):
            raise UserError(f"{path}, {where} is not a JSON object")
        yield where, _as_the_hubs(row, f"{path}, {where}")


def rows_as_the_hubs(path: Path, scratch: Path | None) -> Path:
    """Returns `path` if its rows have the hub's format; otherwise a file in `scratch` with converted rows.

    Raises:
        UserError: a row is not MMLU's; see `read_mmlu`.
    """
    if path.suffix != ".csv":
        pairs = zip(read_mmlu(path), read_objects(path), strict=True)
        if all(row == as_it_is for (_, row), (_, as_it_is) in pairs):
            return path
    assert scratch is not None
    copy = scratch / f"{len(list(scratch.iterdir()))}.jsonl"
    with open(copy, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for _, row in read_mmlu(path))
    return copy


def _table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (location, cells by column) of a CSV file, with or without a header."""
    with opened(path) as file:
        lines = (text for _, text in decoded_lines(path, file))
        names: tuple[str, ...] | None = None
        for line, cells in table_rows(path, lines, delimiter=","):
            if names is None:
                lowered = {cell.strip().lower() for cell in cells}
                headed = bool(lowered & set(_QUESTION)) and bool(lowered & set(_ANSWER))
                names = tuple(cell.strip() for cell in cells) if headed else _HEADER
                if headed:
                    continue
            if len(cells) != len(names):
                raise UserError(
                    f"{path}, line {line}: expected {len(names)} columns ({', '.join(names)}), found {len(cells)}"
                )
            yield f"line {line}", dict(zip(names, cells, strict=True))


def _as_the_hubs(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the row with the hub's names and types.

    Raises:
        UserError: the row has no question, not four choices, or no right answer.
    """
    named = {name.strip().lower(): name for name in row}
    question = next((named[name] for name in _QUESTION if name in named), None)
    answer = next((named[name] for name in _ANSWER if name in named), None)
    lists = [named[name] for name in ("choices", "options") if name in named]
    letters = [named[letter.lower()] for letter in _LETTERS if letter.lower() in named]
    choices = row[lists[0]] if lists else [row[name] for name in letters]
    if question is None or answer is None or not isinstance(choices, list) or len(choices) != len(_LETTERS):
        raise UserError(
            f"{where}: MMLU's rows have question, choices (a list of 4, or A, B, C and D) and answer; "
            f"this one has {', '.join(row)}"
        )
    used = {question, answer, *lists[:1], *([] if lists else letters)}
    rest = {name: value for name, value in row.items() if name not in used}
    number = _number(row[answer], choices, where)
    return {"question": row[question], **rest, "choices": choices, "answer": number}


def _number(answer: Any, choices: list[Any], where: str) -> int:
    """Returns the index of the right choice, which is given as its index, its letter, or its text.

    Raises:
        UserError: the answer is none of these, or ambiguous.
    """
    text = str(answer).strip()
    if len(text) == 1 and text.upper() in _LETTERS:
        return _LETTERS.index(text.upper())
    number = int(text) if text.isdigit() and int(text) < len(choices) else None
    if not isinstance(answer, str) or answer not in choices:
        if number is None:
            raise UserError(f"{where}: the answer {answer!r} is none of A, B, C, D, nor their number from 0")
        return number
    found = choices.index(answer)
    if number not in (None, found):
        raise UserError(f"{where}: the answer {answer!r} is both a choice and the number of another; give its letter")
    return found
