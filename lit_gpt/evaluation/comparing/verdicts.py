"""Judges from the answers of two models to the same questions whether one is better, in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lit_gpt.evaluation.comparing.statistics import LEVEL, bootstrap_interval, mcnemar, mcnemar_needs

SHOWN = 20
"""Questions that are shown of each comparison."""


class Flip(NamedTuple):
    """A question to which the models' values differ."""

    number: int
    """Number of the question in its task, from 0."""
    task: str
    question: str
    target: str
    answers: tuple[str, str]
    """What the first and the second model answer."""
    values: tuple[float, float]
    """What the metric says of it."""


class Comparison(NamedTuple):
    """One metric of one task, or of a group of tasks, for two models."""

    task: str
    metric: str
    n: int
    """Number of questions."""
    scores: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    """Where the difference lies, by a bootstrap over questions."""
    won: int
    """Questions whose value is better with the second model."""
    lost: int
    p: float | None
    """McNemar's; None for a metric that is not 0 or 1."""
    verdict: str
    """better, worse, or no difference that so many questions can show."""
    reason: str
    flips: tuple[Flip, ...]
    """All questions whose value changed, those that changed most first, won and lost ones in turn."""


def compare(
    first: Mapping[str, Sequence[Mapping[str, Any]]],
    second: Mapping[str, Sequence[Mapping[str, Any]]],
    higher: Mapping[str, Mapping[str, bool]],
    groups: Mapping[str, Sequence[str]],
) -> tuple[list[Comparison], list[str]]:
    """Returns the comparisons of all metrics of all tasks and groups, and notes on what could not be compared.

    Args:
        first, second: lm-eval's `samples` of two models, by task.
        higher: lm-eval's `higher_is_better`, metric by task.
        groups: name of a group -> its tasks, whose questions are judged together.
    """
    found, notes = [], []
    for task in first:
        for label, metric, a, b in _metrics(first[task], second[task]):
            values = [_numbers(samples, metric) for samples in (a, b)]
            if values[0] is None or values[1] is None:
                notes.append(f"{task}: {label} has no number for each question, and cannot be compared by question")
                continue
            is_higher = higher.get(task, {}).get(metric, True) is not False
            found.append(_judged(task, label, values=(values[0], values[1]), samples=(a, b), is_higher=is_higher))
    for group, tasks in groups.items():
        found += _of_group(group, [c for c in found if c.task in tasks], first, second=second, higher=higher)
    return found, notes


def _of_group(
    group: str,
    members: Sequence[Comparison],
    first: Mapping[str, Sequence[Mapping[str, Any]]],
    second: Mapping[str, Sequence[Mapping[str, Any]]],
    higher: Mapping[str, Mapping[str, bool]],
) -> list[Comparison]:
    """Returns the comparisons of a group over all questions of its tasks, for metrics that several of them have."""
    found = []
    for label in dict.fromkeys(c.metric for c in members):
        tasks = list(dict.fromkeys(c.task for c in members if c.metric == label))
        metric, _, chosen = label.partition(",")
        if len(tasks) < 2:
            continue
        pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
        for task in tasks:
            pairs += next(
                zip(a, b, strict=True) for name, _, a, b in _metrics(first[task], second[task]) if name == label
            )
        a, b = [x for x, _ in pairs], [y for _, y in pairs]
        values = _numbers(a, metric), _numbers(b, metric)
        assert values[0] is not None and values[1] is not None
        is_higher = higher.get(tasks[0], {}).get(metric, True) is not False
        owners = [task for task in tasks for s in first[task] if not chosen or s.get("filter") == chosen]
        found.append(
            _judged(group, label, values=(values[0], values[1]), samples=(a, b), is_higher=is_higher, owners=owners)
        )
    return found


def _metrics(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, list[Mapping[str, Any]], list[Mapping[str, Any]]]]:
    """Returns (label, metric, samples of both models by question) of each metric and filter of a task."""
    found = []
    filters = list(dict.fromkeys(s["filter"] for s in a))
    for chosen in filters:
        one, other = ({s["doc_id"]: s for s in samples if s["filter"] == chosen} for samples in (a, b))
        assert one.keys() == other.keys(), "both models were asked the same questions"
        order = sorted(one)
        for metric in one[order[0]]["metrics"] if order else []:
            label = metric if len(filters) == 1 and chosen == "none" else f"{metric},{chosen}"
            found.append((label, metric, [one[i] for i in order], [other[i] for i in order]))
    return found


def _numbers(samples: Sequence[Mapping[str, Any]], metric: str) -> np.ndarray | None:
    """Returns the metric's value of each question; None if one is no number."""
    values = [s.get(metric) for s in samples]
    if not all(isinstance(v, bool | int | float | np.number) and math.isfinite(v) for v in values):
        return None
    return np.array(values, dtype=float)


def _judged(
    task: str,
    label: str,
    *,
    values: tuple[np.ndarray, np.ndarray],
    samples: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    is_higher: bool,
    owners: Sequence[str] | None = None,
) -> Comparison:
    """Returns the comparison of a metric.

    Args:
        is_higher: whether a higher value is better.
        owners: the task of each question; `task` if not given.
    """
    a, b = values
    differences, sign = b - a, 1 if is_higher else -1
    won, lost = int((sign * differences > 0).sum()), int((sign * differences < 0).sum())
    interval = bootstrap_interval(differences)
    is_binary = bool(np.isin(np.concatenate([a, b]), (0, 1)).all())
    if is_binary:
        interval = max(-1.0, interval[0]), min(1.0, interval[1])
    p = mcnemar(won, lost) if is_binary else None
    difference = float(differences.mean())
    differs = p < 1 - LEVEL if p is not None else not interval[0] <= 0 <= interval[1]
    word = "better" if sign * difference > 0 else "worse"
    verdict = word if differs else f"no difference that {len(a):,} question{'s' * (len(a) != 1)} can show"
    changed = [i for i in np.argsort(-np.abs(differences), kind="stable").tolist() if differences[i]]
    sides = [[i for i in changed if (sign * differences[i] > 0) == is_won] for is_won in (True, False)]
    in_turn = [i for k in range(max(map(len, sides))) for side in sides for i in side[k : k + 1]]
    whose = [task for _ in a] if owners is None else list(owners)
    flips = tuple(_flip(whose[i], samples[0][i], samples[1][i], (float(a[i]), float(b[i]))) for i in in_turn)
    reason = _reason(won, lost, p=p, interval=interval, differs=differs)
    return Comparison(
        task,
        label,
        len(a),
        scores=(float(a.mean()), float(b.mean())),
        difference=difference,
        interval=interval,
        won=won,
        lost=lost,
        p=p,
        verdict=verdict,
        reason=reason,
        flips=flips,
    )


def _reason(won: int, lost: int, *, p: float | None, interval: tuple[float, float], differs: bool) -> str:
    """Returns why the verdict is what it is, as a sentence."""
    if won == lost == 0:
        return "no question has another value"
    if p is None:
        inside = "does not contain" if differs else "contains"
        return f"the {LEVEL:.0%} interval of the difference, {interval[0]:+.4f} to {interval[1]:+.4f}, {inside} 0"
    changed = f"{won} question{'s' * (won != 1)} won and {lost} lost"
    if differs:
        return f"{changed}, and chance splits them as unevenly with p = {p:.2g} (McNemar)"
    least = mcnemar_needs(won + lost)
    needed = (
        f"{least} of these {won + lost} on one side would" if least else "so few that even all on one side would not"
    )
    return f"{changed}: chance does that with p = {p:.2g} (McNemar); {needed} count"


def _flip(task: str, a: Mapping[str, Any], b: Mapping[str, Any], values: tuple[float, float]) -> Flip:
    question = str(_first_argument(a))
    return Flip(
        int(a["doc_id"]),
        task,
        question,
        target=str(_target(a)),
        answers=(_answer_of(a), _answer_of(b)),
        values=values,
    )


def _first_argument(sample: Mapping[str, Any]) -> Any:
    """Returns the text that the model was asked, of the first request of a question."""
    arguments = sample["arguments"]
    first = next(iter(arguments.values())) if isinstance(arguments, Mapping) else arguments[0]
    return next(iter(first.values())) if isinstance(first, Mapping) else first[0]


def _continuations(sample: Mapping[str, Any]) -> list[str]:
    """Returns the texts that were scored for a question."""
    arguments = sample["arguments"]
    requests = list(arguments.values()) if isinstance(arguments, Mapping) else list(arguments)
    parts = [list(r.values()) if isinstance(r, Mapping) else list(r) for r in requests]
    return [str(part[1]) for part in parts if len(part) > 1]


def _answer_of(sample: Mapping[str, Any]) -> str:
    """Returns what a model answered: the text it wrote, or of several choices the most likely one."""
    responses = list(sample["filtered_resps"])
    if responses and all(isinstance(r, list | tuple) and len(r) == 2 for r in responses):
        texts, values = _continuations(sample), [float(r[0]) for r in responses]
        best = int(np.argmax(values))
        return f"{texts[best].strip()} ({values[best]:.2f})" if best < len(texts) else f"{values[best]:.2f}"
    return ", ".join(map(str, responses))


def _target(sample: Mapping[str, Any]) -> Any:
    """Returns the right answer; of several choices its text."""
    target, texts = sample["target"], _continuations(sample)
    number = int(target) if isinstance(target, int) or str(target).isdigit() else None
    is_choice = sample.get("filtered_resps") and isinstance(sample["filtered_resps"][0], list | tuple)
    return texts[number].strip() if is_choice and number is not None and number < len(texts) else target
