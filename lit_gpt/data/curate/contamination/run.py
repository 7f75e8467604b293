"""Runs the whole search for evaluation sets in a prepared data set: a report by task, a cleaned data set."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lit_gpt.args.curation import ContaminationArgs
from lit_gpt.data import store
from lit_gpt.data.curate import select
from lit_gpt.data.curate.check.run import tokenizer_of
from lit_gpt.data.curate.contamination.index import Index
from lit_gpt.data.curate.contamination.questions import Question, read_questions, task_files, words
from lit_gpt.errors import UserError
from lit_gpt.files import only_writer
from lit_gpt.tokenizer import Tokenizer

_CHUNK = 5_000
"""Number of rows whose texts are in memory at once."""


@dataclass(frozen=True)
class _Overlap:
    """A row that has an n-gram in common with a question or its answers."""

    split: str
    row: int
    question: int
    asked: bool
    """Whether the row has a text of the question."""
    answered: bool
    """Whether the row has one of its answers."""


def check_contamination(
    folder: Path, args: ContaminationArgs, checkpoint_dir: Path | None = None
) -> dict[str, list[_Overlap]]:
    """Prints which evaluation questions are in a prepared data set and returns them; with `drop`, writes a clean copy.

    Args:
        checkpoint_dir: checkpoint whose tokenizer decodes the data; None takes the one that meta.json names.

    Returns:
        task -> overlaps of its questions with the data.

    Raises:
        UserError: the evaluation files are missing or of an unknown format, the data is not prepared, nothing is left
            after dropping, or a data set stands where the clean one is to be written.
    """
    if args.destination_path is not None:
        store.load(folder)  # of pairs, one answer alone would be dropped
        store.require_room(args.destination_path, args.overwrite)
    train, val, meta = store.load(folder, judged=None)
    tokenizer = tokenizer_of(folder, meta, checkpoint_dir)
    files = task_files(args.task_data or {})
    questions, tasks = _read_all(files)
    index = Index(questions, tasks, args.n_words)
    splits = {"train": train, "val": val}
    overlaps: dict[str, list[_Overlap]] = {name: [] for name in files}
    for found in _search(splits, tokenizer, index, questions):
        overlaps[list(files)[tasks[found.question]]].append(found)
    for t, name in enumerate(files):
        mine = [q for q, task in enumerate(tasks) if task == t]
        _report(
            name,
            mine,
            index=index,
            overlaps=overlaps[name],
            n_examples=args.n_examples,
            questions=questions,
            splits=splits,
            tokenizer=tokenizer,
        )
    if args.drop and args.destination_path is not None:
        with only_writer(args.destination_path):
            store.require_room(args.destination_path, args.overwrite)
            _write_clean(folder, splits, meta=meta, overlaps=overlaps, files=files, args=args)
    return overlaps


def _read_all(files: dict[str, Path]) -> tuple[list[Question], list[int]]:
    """Returns the questions of all files, and the number of each one's file; raises UserError if a file has none."""
    questions: list[Question] = []
    tasks: list[int] = []
    for t, path in enumerate(files.values()):
        mine = list(read_questions(path))
        if not mine:
            raise UserError(f"--task_data: {path} has no rows")
        questions += mine
        tasks += [t] * len(mine)
    return questions, tasks


def _search(
    splits: dict[str, store.Samples], tokenizer: Tokenizer, index: Index, questions: Sequence[Question]
) -> Iterator[_Overlap]:
    """Yields each pair of a row and a question that overlap, once."""
    for split, samples in splits.items():
        for start in tqdm(range(0, len(samples), _CHUNK), desc=split, unit_scale=_CHUNK, unit=" rows", disable=None):
            rows = range(start, min(start + _CHUNK, len(samples)))
            texts = [tokenizer.decode(samples[i][0].tolist()) for i in rows]
            hits = index.search(texts)
            kinds: dict[tuple[int, int], set[bool]] = defaultdict(set)
            for text, question, is_answer in zip(hits.text, hits.question, hits.is_answer, strict=True):
                kinds[int(text), int(question)].add(bool(is_answer))
            for (text, question), found in kinds.items():
                answered = True in found or _has_answer(texts[text], questions[question])
                yield _Overlap(split, start + text, question, asked=False in found, answered=answered)


def _has_answer(text: str, question: Question) -> bool:
    """Returns whether one of the answers, however short, is in the text word for word."""
    padded = f" {' '.join(words(text))} "
    return any(f" {' '.join(found)} " in padded for answer in question.answers if (found := words(answer)))


def _report(
    name: str,
    mine: Sequence[int],
    index: Index,
    overlaps: Sequence[_Overlap],
    n_examples: int,
    questions: Sequence[Question],
    splits: dict[str, store.Samples],
    tokenizer: Tokenizer,
) -> None:
    """Prints the overlaps of one task."""
    found = {o.question for o in overlaps}
    answered = {o.question for o in overlaps if o.answered}
    rows = {(o.split, o.row) for o in overlaps}
    line = f"{name}: {len(found):,} of {len(mine):,} questions overlap"
    if found:
        line += f", {len(answered):,} of them with an answer, in {len(rows):,} rows"
    if too_short := len(mine) - int(index.searched[list(mine)].sum()):
        line += f"; {too_short:,} are too short, or too alike, to be searched for"
    print(line)
    for overlap in _first_of_each(overlaps, n_examples):
        text = tokenizer.decode(splits[overlap.split][overlap.row][0].tolist())
        question = questions[overlap.question]
        what = " and ".join(w for w, there in (("question", overlap.asked), ("answer", overlap.answered)) if there)
        print(f"  {question.location}, in sample {overlap.row} of {overlap.split} ({what}):")
        print(f"    {_excerpt(text, question, index)!r}")


def _first_of_each(overlaps: Sequence[_Overlap], n: int) -> list[_Overlap]:
    """Returns the first overlap of each of the first n questions that have one."""
    firsts: dict[int, _Overlap] = {}
    for overlap in overlaps:
        firsts.setdefault(overlap.question, overlap)
    return list(firsts.values())[:n]


def _excerpt(text: str, question: Question, index: Index, most: int = 100) -> str:
    """Returns an excerpt of `most` characters of a text, from its longest n-gram in common with a question on."""
    own = [words(part) for part in (*question.asked, *question.answers)]
    runs = {tuple(w[i : i + n]) for w in own if (n := min(len(w), index.n_words)) for i in range(len(w) - n + 1)}
    spans = [(m.start(), m.end()) for m in re.finditer(r"\w+", text)]
    words_of_spans = [words(text[a:b]) for a, b in spans]
    for n in sorted({len(run) for run in runs}, reverse=True):
        for i in range(len(words_of_spans) - n + 1):
            if tuple(w for part in words_of_spans[i : i + n] for w in part)[:n] in runs:
                return text[spans[i][0] : spans[i][0] + most]
    return text[:most]


def _write_clean(
    folder: Path,
    splits: dict[str, store.Samples],
    meta: dict[str, Any],
    overlaps: dict[str, list[_Overlap]],
    files: dict[str, Path],
    args: ContaminationArgs,
) -> None:
    """Writes the data set without the rows that overlap; raises UserError if none are left."""
    bad = {(o.split, o.row) for found in overlaps.values() for o in found}
    kept = {
        name: np.array([i for i in range(len(samples)) if (name, i) not in bad], dtype=np.int64)
        for name, samples in splits.items()
    }
    dropped = {name: len(splits[name]) - len(rows) for name, rows in kept.items()}
    known = meta.get("rows", {})
    cleaned = {
        **meta,
        "rows": {name: _without(known.get(name), len(splits[name]), n) for name, n in dropped.items()},
        "decontaminated": {
            "source": str(folder),
            "task_data": {name: str(path) for name, path in files.items()},
            "n_words": args.n_words,
            "dropped": dropped,
        },
    }
    assert args.destination_path is not None  # it goes with --drop
    select.write(args.destination_path, {name: [(splits[name], rows)] for name, rows in kept.items()}, cleaned)
    print(f"Saved to {args.destination_path}, without {dropped['train']:,} rows of train and {dropped['val']:,} of val")


def _without(record: dict[str, Any] | None, n_rows: int, n_dropped: int) -> dict[str, Any]:
    """Returns the record of a split's rows in meta.json after more rows were dropped."""
    record = {"read": n_rows, "kept": n_rows, "dropped": {}, "cut": {}} | (record or {})
    dropped = {**(record["dropped"] or {}), **({"in an evaluation set": n_dropped} if n_dropped else {})}
    return {**record, "kept": record["kept"] - n_dropped, "dropped": dropped}
