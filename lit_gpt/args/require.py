"""Checks of values."""

from math import inf

from lit_gpt.errors import UserError


def require(name: str, value: float, at_least: float = -inf, at_most: float = inf, above: float = -inf) -> None:
    """Checks that a value is neither too small nor too large; raises UserError if it is."""
    if value != value:
        raise UserError(f"--{name} {value} must be a number")
    if value < at_least:
        raise UserError(f"--{name} {value} must be at least {at_least}")
    if value <= above:
        raise UserError(f"--{name} {value} must be more than {above}")
    if value > at_most:
        raise UserError(f"--{name} {value} must be at most {at_most:,}")
