"""How many texts an evaluation computes at once where the user does not say."""

from lit_gpt.generation.batching.pool import dtype_of, fitting
from lit_gpt.model import GPT

_MOST = {"cpu": 16, "cuda": 64}
"""Most rows, by device: more of them make a pass no faster."""
_SHARE = 0.5
"""Share of the memory for a KV cache that they may take."""


def rows_that_fit(model: GPT, longest: int, n: int) -> int:
    """Returns the number of rows that are computed at once.

    Args:
        longest: most tokens of a row.
        n: number of rows in all.
    """
    most = _MOST.get(model.transformer.wte.weight.device.type, 16)
    room = int(_SHARE * fitting(model, most * 4, dtype_of(model)))
    return max(1, min(n, most, room // longest))
