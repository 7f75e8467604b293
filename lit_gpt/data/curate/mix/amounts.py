"""How many rows of each source a mixture has, and which."""

from collections.abc import Mapping

import numpy as np

from lit_gpt.args.curation import MixArgs
from lit_gpt.errors import UserError


def shares(available: Mapping[str, int], args: MixArgs) -> dict[str, int]:
    """Training rows of each source. Raises: UserError if there are none."""
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
        amounts[name] += 1  # those that lost most by rounding
    amounts = {name: min(n, (args.caps or {}).get(name, n)) for name, n in amounts.items()}
    if not any(amounts.values()):
        raise UserError(f"--weights {args.weights} leave no rows of {dict(available)}; pass --size")
    return amounts


def draw(available: int, n: int, seed: str) -> np.ndarray:
    """(n,) int64: n of the rows in order; all of them as often as they fit, and some once more."""
    rng = np.random.default_rng(list(seed.encode()))
    again, rest = divmod(n, available)
    once_more = np.sort(rng.choice(available, rest, replace=False))
    return np.sort(np.concatenate([np.tile(np.arange(available), again), once_more]).astype(np.int64))
