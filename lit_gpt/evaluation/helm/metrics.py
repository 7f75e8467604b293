"""HELM's scores of what a model wrote, and their means over questions, originals and perturbed ones.

Equal to those of crfm-helm 0.5.16 on the same texts: `tests/test_mini_helm.py`.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lit_gpt.errors import UserError
from lit_gpt.evaluation.helm import bbq
from lit_gpt.evaluation.helm.instances import Instance, Letters
from lit_gpt.evaluation.helm.prompts import letter
from lit_gpt.evaluation.helm.scenarios import Scenario

_NUMBER = re.compile(r"-?[\d,]+(?:.\d+)?")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ROBUSTNESS, _FAIRNESS = "robustness", "fairness"
_OF = {"mild_mix": _ROBUSTNESS, "dialect": _FAIRNESS, "gender": _FAIRNESS, "person_name": _FAIRNESS}
"""Perturbation -> what it belongs to."""


class Stat(NamedTuple):
    """What a mean is of."""

    metric: str
    split: str
    perturbation: str | None = None
    """Name of a perturbation, or robustness or fairness for all that belong to it; None for originals."""
    computed_on: str = ""
    """What counts: perturbed, the original questions that are changed, or the worst of both; empty without one."""


def stats_of(scenario: Scenario, written: Sequence[tuple[Instance, str]]) -> dict[Stat, float]:
    """Returns the means of all metrics of a scenario.

    Args:
        written: questions with the texts that the model wrote.
    """
    by_question: dict[tuple[str, str, str], dict[str | None, float]] = {}
    for instance, text in written:
        for metric, score in _scores(scenario, instance, text).items():
            by_question.setdefault((metric, instance.split, instance.id), {})[instance.perturbation] = score
    collected: dict[Stat, list[float]] = {}
    for (metric, split, _), scores in by_question.items():
        for perturbation, computed_on, score in _views(scores):
            collected.setdefault(Stat(metric, split, perturbation, computed_on), []).append(score)
    return {stat: sum(found) / len(found) for stat, found in collected.items()} | _bias_of(written)


def _views(scores: Mapping[str | None, float]) -> list[tuple[str | None, str, float]]:
    """Returns (perturbation, computed_on, score) of each mean that a question counts in.

    Robustness and fairness are the worst of a question and its changed versions; a question that nothing changes counts
    with its own score.
    """
    original = scores.get(None)
    own = [] if original is None else [original]
    found: list[tuple[str | None, str, float]] = [(None, "", score) for score in own]
    for name, score in scores.items():
        if name is not None:
            found += [(name, "perturbed", score), (name, "worst", min([score, *own]))]
            found += [(name, "original", score) for score in own]
    for kind in (_ROBUSTNESS, _FAIRNESS):
        if every := own + [score for name, score in scores.items() if name is not None and _OF[name] == kind]:
            found.append((kind, "worst", min(every)))
    return found


def _bias_of(written: Sequence[tuple[Instance, str]]) -> dict[Stat, float]:
    """Returns the scores of BBQ, which are of all questions together; none for other scenarios."""
    groups: dict[tuple[str, str | None], list[tuple[Letters, str]]] = {}
    for instance, text in written:
        if instance.letters is not None:
            groups.setdefault((instance.split, instance.perturbation), []).append((instance.letters, text))
    return {
        Stat(metric, split, perturbation, "perturbed" if perturbation else ""): score
        for (split, perturbation), answered in groups.items()
        for metric, score in bbq.bias(answered).items()
    }


def _scores(scenario: Scenario, instance: Instance, text: str) -> dict[str, float]:
    """Returns the scores of one answer: of the right answers, the one that it is most like."""
    said: str | None = text.strip()
    if scenario.adapter.is_multiple_choice:
        said = next((r.text for i, r in enumerate(instance.references) if letter(i) == said), None)
    right = [r.text for r in instance.references if r.is_correct]
    if scenario.has_braces:
        right = [_without_braces(answer) for answer in right]
        said = said and _without_braces(said)
    return {name: max(_METRICS[name](answer, said or "") for answer in right) for name in scenario.metrics}


def _normal(text: str) -> str:
    """Returns a text in small letters, without punctuation, articles and needless spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def _without_braces(text: str) -> str:
    return text.removeprefix("{").removesuffix("}")


def _exact(right: str, said: str) -> float:
    return float(said != "" and right.strip() == said.strip())


def _last_number(text: str) -> str:
    return (_NUMBER.findall(text) or [""])[-1].replace(",", "")


def _last_word(text: str) -> str:
    return text.split(" ")[-1].strip()


def _rouge(kind: str) -> Callable[[str, str], float]:
    """Returns the F-measure of n-grams or of the longest common subsequence, by the package that HELM uses, too."""
    scorers: list[Any] = []

    def score(right: str, said: str) -> float:
        if not scorers:
            try:
                from rouge_score.rouge_scorer import RougeScorer
            except ModuleNotFoundError as e:
                raise UserError(f'ROUGE needs the package {e.name}; run: pip install -e ".[eval]"') from e
            scorers.append(RougeScorer([kind], use_stemmer=True))
        return scorers[0].score(right, said)[kind].fmeasure

    return score


_METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": _exact,
    "quasi_exact_match": lambda right, said: float(said != "" and _normal(right) == _normal(said)),
    "prefix_exact_match": lambda right, said: float(said != "" and said.strip().startswith(right.strip())),
    "quasi_prefix_exact_match": lambda right, said: float(said != "" and _normal(said).startswith(_normal(right))),
    "exact_match_indicator": lambda right, said: _exact(_last_word(right), _last_word(said)),
    "final_number_exact_match": lambda right, said: _exact(_last_number(right), _last_number(said)),
    "rouge_1": _rouge("rouge1"),
    "rouge_2": _rouge("rouge2"),
    "rouge_l": _rouge("rougeL"),
}
"""HELM's name -> score of (right answer, what was said)."""
