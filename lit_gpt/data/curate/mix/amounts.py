"""Decides how many rows of each source a mixture has, and draws them."""

from collections.abc import Mapping

import numpy as np

from lit_gpt.args.curation import MixArgs
from lit_gpt.errors import UserError


def shares(available: Mapping[str, int], args: MixArgs) -> dict[str, int]:
    """Returns the number of training rows to take from each source; raises UserError if it is 0 for all."""
    most = {name: min(n, (args.caps or {}).get(name, n)) for name, n in available.items()}
    if not args.weights:
        sizes = args.sizes or {}
        caps = args.caps or {}
        return {name: min(sizes.get(name, n), caps.get(name, sizes.get(name, n))) for name, n in available.items()}
    total = sum(args.weights.values())
    parts = {name: weight / total for name, weight in args.weights.items()}
    size = args.size or int(min(most[name] / part for name, part in parts.items()) + 1e-9)
    amounts = {name: int(size * part + 1e-9) for name, part in parts.items()}
    for name in sorted(parts, key=lambda n: amounts[n] - size * parts[n])[: size - sum(amounts.values())]:
        amounts[name] += 1  # the sources that lost most by rounding down
    amounts = {name: min(n, (args.caps or {}).get(name, n)) for name, n in amounts.items()}
    if not any(amounts.values()):
        raise UserError(f"--weights {args.weights} leave no rows of {dict(available)}; pass --size")
    return amounts


def draw(available: int, n: int, seed: str) -> np.ndarray:
    """Returns n row indices in order, (n,) int64: each row n // available times, and a random part once more."""
    rng = np.random.default_rng(list(seed.encode()))
    again, rest = divmod(n, available)
    once_more = np.sort(rng.choice(available, rest, replace=False))
    return np.sort(np.concatenate([np.tile(np.arange(available), again), once_more]).astype(np.int64))
