"""Deals the samples of an optimizer step to several devices so that they finish together."""

import heapq
from collections.abc import Sequence

import numpy as np


def dealt(lengths: np.ndarray, rows: Sequence[int], n: int) -> list[list[int]]:
    """Returns the samples of each of `n` devices: the longest first, each to the one with the fewest tokens so far.

    Args:
        lengths: tokens of each sample.
        rows: samples of the step.
    """
    if n == 1:
        return [list(rows)]
    hands: list[list[int]] = [[] for _ in range(n)]
    loads = [(0, i) for i in range(n)]
    for row in sorted(rows, key=lambda i: -lengths[i]):  # the same order everywhere: sorting is stable
        load, i = heapq.heappop(loads)
        hands[i].append(row)
        heapq.heappush(loads, (load + int(lengths[row]), i))
    return hands


def balance(lengths: np.ndarray, steps: Sequence[Sequence[int]], n: int) -> float:
    """Returns the part of the time in which the devices work, if it goes by tokens: the mean load by the largest.

    Args:
        steps: samples of some optimizer steps.
    """
    mean = largest = 0.0
    for rows in steps:
        loads = [int(lengths[hand].sum()) if hand else 0 for hand in dealt(lengths, rows, n)]
        mean, largest = mean + sum(loads) / n, largest + max(loads)
    return mean / max(1.0, largest)
