"""Which rows are held out for validation: near-identical prompts stay on one side."""

import random
from collections.abc import Sequence

import numpy as np

from lit_gpt.data.rows import Row
from lit_gpt.data.similar import groups
from lit_gpt.errors import UserError


def prompt_of(row: Row) -> str:
    """What a conversation begins with: paths of one tree, and turns that follow the same question, stay together."""
    return "\n".join(filter(None, (row.instruction, row.context)))


def held_out(prompts: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """(n,) bool: the rows that are held out, `fraction` of all or somewhat fewer, but at least one.

    Groups of near-identical prompts are drawn by seed and taken as long as they fit.

    Raises:
        UserError: fewer than two groups.
    """
    if len(prompts) < 2:
        raise UserError("one row cannot be split; pass --validation_file")
    labels = groups(prompts)
    names, sizes = np.unique(labels, return_counts=True)
    if len(names) < 2:
        raise UserError("all prompts are near-identical, so that none can be held out; pass --validation_file")
    wanted = min(len(prompts) - 1, max(1, round(len(prompts) * fraction)))
    chosen, n = [], 0
    for i in random.Random(seed).sample(range(len(names)), len(names)):
        if n + sizes[i] <= wanted:
            chosen.append(names[i])
            n += sizes[i]
    return np.isin(labels, chosen or [names[sizes.argmin()]])
