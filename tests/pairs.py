"""Few cases in which every two values of different axes meet, in the place of all combinations.

What breaks a combination of values is most often one of them, or two that do not go together
(https://doi.org/10.1109/TSE.2004.24), and three axes of six values have 216 combinations but some 40 such cases.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any


def in_pairs(*axes: Sequence[Any], allowed: Callable[..., bool] = lambda *case: True) -> list[tuple[Any, ...]]:
    """Returns cases, one value of each axis, in which any two values that an allowed case has meet at least once."""
    places = [case for case in product(*(range(len(axis)) for axis in axes)) if allowed(*_values(axes, case))]
    met_by = {case: set(combinations(enumerate(case), 2)) for case in places}
    missing, found = set().union(*met_by.values()), []
    while missing:
        best = max(places, key=lambda case: len(met_by[case] & missing))
        missing -= met_by[best]
        found.append(best)
    return [_values(axes, case) for case in sorted(found)]


def _values(axes: Sequence[Sequence[Any]], case: Sequence[int]) -> tuple[Any, ...]:
    return tuple(axis[i] for axis, i in zip(axes, case, strict=True))
