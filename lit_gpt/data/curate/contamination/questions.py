"""Reads the texts of evaluation sets of any schema, divided into questions and answers."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.data.prepare.sources import entries
from lit_gpt.errors import UserError

_ANSWER = re.compile(r"answer|target|output|completion|response|solution|gold|label|choice|option|ending|correct", re.I)
"""Matches keys whose values are answers, right or wrong; other keys hold the question."""
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".json.gz")
_WORD = re.compile(r"[^\W_]+")
_ONE_CHARACTER_WORDS = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
"""Characters of scripts without spaces between words; each counts as a word."""


@dataclass(frozen=True)
class Question:
    """One entry of an evaluation set."""

    location: str
    """File and line of the entry."""
    asked: tuple[str, ...]
    """Texts of the question."""
    answers: tuple[str, ...]
    """Texts of its answers, right or wrong."""


def words(text: str) -> list[str]:
    """Returns the words of a text as they are compared: without case, punctuation and compatibility forms."""
    if not text.isascii():
        text = _ONE_CHARACTER_WORDS.sub(r" \g<0> ", unicodedata.normalize("NFKC", text))
    return _WORD.findall(text.casefold())


def task_files(task_data: Mapping[str, Path] | Path) -> dict[str, Path]:
    """Returns the file of each task.

    Args:
        task_data: task -> file or folder, or a single file or folder.

    Raises:
        UserError: there is no such file, or no file in the folder that could hold an evaluation set.
    """
    given = task_data if isinstance(task_data, Mapping) else {"": task_data}
    found: dict[str, Path] = {}
    for task, path in given.items():
        if not path.exists():
            raise UserError(f"--task_data {f'{task}: ' if task else ''}there is no {path}")
        files = _in_folder(path) if path.is_dir() else {path.name.split(".")[0]: path}
        if not files:
            raise UserError(f"--task_data: {path} has no file that ends with {', '.join(_SUFFIXES)}")
        if path.is_dir() and task in files:
            files = {task: files[task]}
        found |= {_name_of(task, name, len(files)): file for name, file in files.items()}
    return found


def _name_of(task: str, file: str, n_files: int) -> str:
    """Returns the name of a task's file in the report."""
    return (task if n_files == 1 or not file else f"{task}/{file}") if task else file


def _in_folder(folder: Path) -> dict[str, Path]:
    """Returns the files of a folder that may hold an evaluation set, by name."""
    return {p.name.split(".")[0]: p for p in sorted(folder.iterdir()) if p.name.endswith(_SUFFIXES)}


def read_questions(path: Path) -> Iterator[Question]:
    """Yields the entries of an evaluation set; raises UserError if the file is not JSON, JSON lines or CSV."""
    for location, entry in entries(path):
        if not isinstance(entry, dict):
            raise UserError(f"{path}, {location}: expected an object, found {type(entry).__name__}")
        texts = list(_texts_of(entry, is_answer=False))
        asked, answers = (tuple(dict.fromkeys(t for t, a in texts if a is kind)) for kind in (False, True))
        yield Question(f"{path.name}, {location}", asked, answers)


def _texts_of(value: Any, is_answer: bool) -> Iterator[tuple[str, bool]]:
    """Yields (text, whether it is an answer) of all texts within a value; web addresses are left out."""
    if isinstance(value, str):
        pieces = value.split("####")  # GSM8K writes the final answer after it
        yield from ((piece.strip(), is_answer) for piece in pieces if piece.strip() and "://" not in piece)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if " " in key:  # answers as keys, right or wrong as values: TruthfulQA's own file
                yield key, is_answer
            yield from _texts_of(inner, is_answer or bool(_ANSWER.search(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_of(inner, is_answer)
