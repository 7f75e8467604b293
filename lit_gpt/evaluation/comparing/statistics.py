"""Statistics of paired values: what two models got for the same questions."""

import math

import numpy as np

LEVEL = 0.95
"""Confidence of the intervals; a chance result counts as a difference in one comparison of twenty."""
_DRAWS = 10_000
"""Resamplings of a bootstrap."""
_VALUES = 2**22
"""Most values that are drawn at once."""


def bootstrap_interval(differences: np.ndarray, seed: int = 1234) -> tuple[float, float]:
    """Returns the interval that the mean of `differences` lies in, by resampling questions (percentiles).

    It is widened by sqrt(n / (n - 1)), which the variance of a resampled mean lacks. One question says nothing: the
    interval is all numbers then.
    """
    n = len(differences)
    if n < 2:
        return -math.inf, math.inf
    rng, means = np.random.default_rng(seed), np.empty(_DRAWS)
    step = max(1, _VALUES // n)
    for at in range(0, _DRAWS, step):
        drawn = rng.integers(0, n, (min(step, _DRAWS - at), n))
        means[at : at + step] = differences[drawn].mean(1)
    center, tail = float(differences.mean()), (1 - LEVEL) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    wider = math.sqrt(n / (n - 1))
    return center - (center - float(low)) * wider, center + (float(high) - center) * wider


def mcnemar(n_won: int, n_lost: int) -> float:
    """Returns the probability that right and wrong answers that changed places are split as unevenly by chance.

    It is McNemar's exact test, two-sided: of the questions that only one of both models answers rightly, each is
    equally likely to be either's (McNemar 1947; exact by the binomial distribution).

    Args:
        n_won: questions that only the second model answers rightly.
        n_lost: questions that only the first one does.
    """
    n, k = n_won + n_lost, min(n_won, n_lost)
    if n == 0:
        return 1.0
    logs = [_log_choose(n, i) - n * math.log(2) for i in range(k + 1)]
    largest = max(logs)
    tail = math.exp(largest) * sum(math.exp(x - largest) for x in logs)
    return min(1.0, 2 * tail)


def _log_choose(n: int, k: int) -> float:
    """Returns the logarithm of the number of ways to choose k of n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def mcnemar_needs(n_changed: int) -> int | None:
    """Returns how many of so many changed answers have to be on one side to count as a difference; None if all of them
    would not do."""
    return next((k for k in range(n_changed // 2, n_changed + 1) if mcnemar(k, n_changed - k) < 1 - LEVEL), None)
