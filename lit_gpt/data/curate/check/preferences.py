"""Checks a data set of preferences: equal and empty answers, length bias, prompts that both splits have."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.data import store
from lit_gpt.data.answers import Answers, read_answers
from lit_gpt.data.curate.check.finding import Finding, counted
from lit_gpt.data.curate.check.tokens import check_tokens
from lit_gpt.tokenizer import Tokenizer

_BIASED = 0.65
"""Share of the pairs from which on the length of an answer alone tells which is preferred too well."""
_ONE_SIDED = 0.1
"""Share of the rarer verdict below which a data set with labels is one-sided."""


def preference_findings(
    splits: dict[str, store.Samples], folder: Path, meta: dict[str, Any], tokenizer: Tokenizer, end_ids: Sequence[int]
) -> list[Finding]:
    """Returns findings about the answers of each split, and about prompts that both splits have."""
    answers = {name: read_answers(folder, name, samples, meta) for name, samples in splits.items()}
    found = [f for name, samples in splits.items() for f in check_tokens(name, samples, tokenizer, end_ids)]
    for name, split in answers.items():
        found += _empty(name, split, tokenizer)
        found += [_equal(name, split), _lengths(name, split)] if split.desirable is None else [_verdicts(name, split)]
    found.append(_leaks(answers["train"], answers["val"]))
    return found


def _equal(name: str, answers: Answers) -> Finding:
    """Counts pairs whose answers are equal, which teach nothing."""
    rows = [i for i in range(len(answers)) if len({ids.tobytes() for ids, _ in answers.of(i)}) == 1]
    return counted(name, len(rows), len(answers), what="have two equal answers", example=_example(name, rows))


def _empty(name: str, answers: Answers, tokenizer: Tokenizer) -> Iterator[Finding]:
    """Counts answers that hold no text but spaces and end-of-sequence tokens; only short ones are decoded."""
    few = (answers.n_targets_of <= 8).nonzero()[0].tolist()
    blank = [i for i in few if not tokenizer.decode(answers.targets(i).tolist()).strip()]
    rows = sorted({answers.row_of(i) for i in blank})
    yield counted(name, len(rows), len(answers), what="have an empty answer", example=_example(name, rows))


def _lengths(name: str, answers: Answers) -> Finding:
    """Says how often the longer answer is the preferred one: a model would learn to write at length from that."""
    chosen, rejected = answers.n_targets_of[::2], answers.n_targets_of[1::2]
    share = float((chosen > rejected).mean() + 0.5 * (chosen == rejected).mean())
    lengths = f"{chosen.mean():.0f} and {rejected.mean():.0f} tokens in the mean"
    text = f"{name}: the preferred answer is the longer one in {share:.0%} of the pairs ({lengths})"
    if share > _BIASED:
        return Finding("warning", f"{text}; what is learned may be to write at length: --loss simpo divides by it")
    if share < 1 - _BIASED:
        return Finding("warning", f"{text}; what is learned may be to write little")
    return Finding("ok", text)


def _verdicts(name: str, answers: Answers) -> Finding:
    """Says how many answers are desired ones."""
    assert answers.desirable is not None
    share = float(answers.desirable.mean())
    text = f"{name}: {share:.0%} of the {len(answers):,} answers are desired ones"
    return Finding("ok" if _ONE_SIDED < share < 1 - _ONE_SIDED else "warning", text)


def _leaks(train: Answers, val: Answers) -> Finding:
    """Counts validation rows whose prompt is a prompt of the training set."""
    known = {train.prompt(i).tobytes() for i in range(len(train))}
    rows = [i for i in range(len(val)) if val.prompt(i).tobytes() in known]
    return counted("val", len(rows), len(val), what="have a prompt of train", example=_example("val", rows))


def _example(name: str, rows: Sequence[int]) -> str:
    """Returns the name of the first of these rows; empty if there are none."""
    return f"row {rows[0]} of {name}" if len(rows) else ""
