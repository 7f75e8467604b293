"""A question of a scenario as HELM sees it, and which of the questions are asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

TRAIN, VALID, TEST = "train", "valid", "test"


@dataclass(frozen=True)
class Reference:
    """A possible answer."""

    text: str
    is_correct: bool = True


@dataclass(frozen=True)
class Letters:
    """What the letters of a question of BBQ stand for; empty where the question has no such answer."""

    correct: str
    target: str
    """Letter of the answer that names the stereotyped group."""
    non_target: str
    unknown: str
    is_negative: bool
    """Whether the question asks for the stereotype, rather than for its opposite."""
    is_ambiguous: bool
    """Whether the text does not tell the answer."""


@dataclass(frozen=True)
class Instance:
    """A question with its possible answers, unchanged or perturbed."""

    text: str
    references: tuple[Reference, ...]
    split: str
    id: str = ""
    perturbation: str | None = None
    """Name of the perturbation that changed it; None for the original."""
    letters: Letters | None = field(default=None, repr=False)

    @property
    def answer(self) -> str | None:
        """The first correct answer; None if there is none."""
        return next((r.text for r in self.references if r.is_correct), None)


def numbered(instances: Sequence[Instance]) -> list[Instance]:
    """Returns the instances with ids by their position, from which perturbations draw."""
    return [replace(instance, id=f"id{i}") for i, instance in enumerate(instances)]


def sampled(instances: Sequence[Instance], most: int | None) -> list[Instance]:
    """Returns at most `most` of the questions that are asked, those that HELM draws, in its order.

    Questions for validation and for testing are drawn together: a scenario that has both, as MMLU has, is scored on the
    part of them that is its main split.
    """
    asked = [instance for instance in instances if instance.split != TRAIN]
    if most is None or len(asked) <= most:
        return asked
    drawn = np.random.RandomState(0).choice(len(asked), most, replace=False)
    return [asked[i] for i in drawn]
