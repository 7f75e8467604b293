"""Rows of published files, with the fields that the hub's copies have and lm-eval's tasks read."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lit_gpt.records import parse_json, parse_object

Rows = Iterable[dict[str, Any]]


def plain_rows(contents: Sequence[bytes], name: str) -> Iterator[dict[str, Any]]:
    """Yields the objects of JSON lines as they are."""
    for line in contents[0].decode("utf-8-sig").splitlines():
        if line.strip():
            yield parse_object(line, name)


def arc_rows(contents: Sequence[bytes], name: str) -> Iterator[dict[str, Any]]:
    """Yields ARC's rows: id, question, choices (text and label, a list each), answerKey."""
    for row in plain_rows(contents, name):
        asked = row["question"]
        yield {"id": row["id"], "question": asked["stem"], "choices": _choices(asked), "answerKey": row["answerKey"]}


def openbookqa_rows(contents: Sequence[bytes], name: str) -> Iterator[dict[str, Any]]:
    """Yields OpenBookQA's rows: id, question_stem, choices (text and label, a list each), answerKey."""
    for row in plain_rows(contents, name):
        asked = row["question"]
        common = {"id": row["id"], "question_stem": asked["stem"]}
        yield {**common, "choices": _choices(asked), "answerKey": row["answerKey"]}


def _choices(question: dict[str, Any]) -> dict[str, list[str]]:
    return {key: [choice[key] for choice in question["choices"]] for key in ("text", "label")}


def boolq_rows(contents: Sequence[bytes], name: str) -> Iterator[dict[str, Any]]:
    """Yields BoolQ's rows as in SuperGLUE: question, passage, idx, label (1 for yes)."""
    for row in plain_rows(contents, name):
        yield {**{key: row[key] for key in ("question", "passage", "idx")}, "label": int(row["label"])}


def piqa_rows(contents: Sequence[bytes], name: str) -> Iterator[dict[str, Any]]:
    """Yields PIQA's rows: goal, sol1, sol2, and the label of the file beside them."""
    labels = contents[1].decode().split()
    rows = list(plain_rows(contents[:1], name))
    if len(labels) != len(rows):
        raise ValueError(f"{len(rows)} questions and {len(labels)} labels")
    for row, label in zip(rows, labels, strict=True):
        yield {**{key: row[key] for key in ("goal", "sol1", "sol2")}, "label": int(label)}


def bbh_rows(contents: Sequence[bytes], name: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a task of BIG-bench hard: input, target."""
    for row in parse_object(contents[0], name)["examples"]:
        yield {"input": row["input"], "target": row["target"]}


def mmlu_rows(contents: Sequence[bytes], name: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a subject of MMLU: question, subject, choices, answer (its number)."""
    for cells in csv.reader(io.StringIO(contents[0].decode("utf-8-sig"), newline="")):
        if not cells:
            continue
        if len(cells) != 6:
            raise ValueError(f"expected 6 columns, found {len(cells)}: {cells[0][:40]!r}")
        question, *choices, answer = cells
        yield {"question": question, "subject": name, "choices": choices, "answer": "ABCD".index(answer.strip())}


def truthfulqa_rows(contents: Sequence[bytes], name: str) -> Iterator[dict[str, Any]]:
    """Yields TruthfulQA's rows with choices: question, mc1_targets and mc2_targets (choices and labels each)."""
    for row in parse_json(contents[0], name):
        kinds = {kind: row[kind] for kind in ("mc1_targets", "mc2_targets")}
        targets = {kind: {"choices": list(t), "labels": list(t.values())} for kind, t in kinds.items()}
        yield {"question": row["question"], **targets}


def truthfulqa_texts(contents: Sequence[bytes], name: str) -> Iterator[dict[str, Any]]:
    """Yields TruthfulQA's rows to be answered in words: type, category, question, answers, source."""
    names, *rows = csv.reader(io.StringIO(contents[0].decode("utf-8-sig"), newline=""))
    for row in (dict(zip(names, values, strict=True)) for values in rows if values):
        yield {
            "type": row["Type"],
            "category": row["Category"],
            "question": row["Question"],
            "best_answer": row["Best Answer"],
            "correct_answers": _parts(row["Correct Answers"]),
            "incorrect_answers": _parts(row["Incorrect Answers"]),
            "source": row["Source"],
        }


def _parts(cell: str) -> list[str]:
    """Returns the answers in a cell, which semicolons separate."""
    return [part.strip() for part in cell.split(";") if part.strip()]
