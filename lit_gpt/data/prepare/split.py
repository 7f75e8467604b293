"""Which rows are held out for validation: near-identical prompts stay on one side."""

import random
from collections.abc import Sequence

import numpy as np

from lit_gpt.data.prepare.apart import MOST_ALIKE, groups_apart, large
from lit_gpt.data.prepare.rows import Row
from lit_gpt.errors import UserError


def prompt_of(row: Row) -> str:
    """What a conversation begins with: paths of one tree, and turns that follow the same question, stay together."""
    return "\n".join(filter(None, (row.instruction, row.context)))


def held_out(prompts: Sequence[str], fraction: float, seed: int, systems: Sequence[str] = ()) -> np.ndarray:
    """(n,) bool: the rows that are held out, `fraction` of all or somewhat fewer, but at least one.

    Groups of near-identical prompts are drawn by seed and taken as long as they fit. What many prompts share does not
    make them alike: instructions that all rows repeat, or all rows of a task.

    Args:
        systems: the system text of each row; they tell rows apart that all ask the same.

    Raises:
        UserError: fewer than two groups.
    """
    if len(prompts) < 2:
        raise UserError("one row cannot be split; pass --validation_file")
    wanted = min(len(prompts) - 1, max(1, round(len(prompts) * fraction)))
    labels = _labels(prompts, systems, MOST_ALIKE)
    names, sizes = np.unique(labels, return_counts=True)
    if sizes.min() > wanted:  # rather a part of each of them than all of one
        labels = _labels(prompts, systems, 1)
        names, sizes = np.unique(labels, return_counts=True)
    if len(names) < 2:
        raise UserError("all prompts are near-identical, so that none can be held out; pass --validation_file")
    chosen, n = [], 0
    for i in random.Random(seed).sample(range(len(names)), len(names)):
        if n + sizes[i] <= wanted:
            chosen.append(names[i])
            n += sizes[i]
    return np.isin(labels, chosen or [names[sizes.argmin()]])


def _labels(prompts: Sequence[str], systems: Sequence[str], most: int) -> np.ndarray:
    """(n,) int64: for each row the first one of its group."""
    labels = groups_apart(prompts, most=most)
    for members in large(labels, most) if len(systems) else []:
        labels[members] = members[groups_apart([systems[i] for i in members], most=most)]
    return labels
