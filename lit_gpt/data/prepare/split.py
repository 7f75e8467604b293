"""Decides which rows are held out for validation, keeping near-duplicate prompts on one side."""

import random
from collections.abc import Sequence

import numpy as np

from lit_gpt.data.prepare.apart import MOST_ALIKE, groups_apart, large
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.texts import Texts
from lit_gpt.errors import UserError


def prompt_of(row: Row) -> str:
    """Returns the first question of a row: conversations that begin with the same one go to the same split."""
    return "\n".join(filter(None, (row.instruction, row.context)))


def held_out(prompts: Sequence[str], fraction: float, seed: int, systems: Sequence[str] = ()) -> np.ndarray:
    """Returns which rows are held out, (n,) bool: `fraction` of all or somewhat fewer, but at least one.

    Groups of near-duplicate prompts are drawn by seed and held out as long as there is room for the whole group. Text
    that many prompts share, such as an instruction that all rows of a task repeat, does not make them near-duplicates.
    Where very many prompts are alike, some pairs near the threshold are missed (see `minhash`).

    Args:
        systems: the system text of each row; it tells rows apart that all ask the same.

    Raises:
        UserError: all prompts are near-duplicates of each other, so there is nothing to split.
    """
    if len(prompts) < 2:
        raise UserError("one row cannot be split; pass --validation_file")
    wanted = min(len(prompts) - 1, max(1, round(len(prompts) * fraction)))
    labels = _labels(prompts, systems, MOST_ALIKE)
    names, sizes = np.unique(labels, return_counts=True)
    if sizes.min() > wanted:  # no group is small enough to be held out whole: divide them
        labels = _labels(prompts, systems, 1)
        names, sizes = np.unique(labels, return_counts=True)
    if len(names) < 2:
        raise UserError("all prompts are near-identical, so that none can be held out; pass --validation_file")
    drawn, n = [], 0
    for i in random.Random(seed).sample(range(len(names)), len(names)):
        if n == wanted:
            break
        if n + sizes[i] <= wanted:
            drawn.append(names[i])
            n += sizes[i]
    return np.isin(labels, drawn or [names[sizes.argmin()]])


def _labels(prompts: Sequence[str], systems: Sequence[str], most: int) -> np.ndarray:
    """Returns for each row the index of the first row of its group, (n,) int64."""
    labels = groups_apart(prompts, most=most)
    for members in large(labels, most) if len(systems) else []:
        theirs = Texts(systems[int(i)] for i in members)
        labels[members] = members[groups_apart(theirs, most=most)]
    return labels
