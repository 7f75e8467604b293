"""Checks of values."""

from lit_gpt.errors import UserError


def require(name: str, value: float, at_least: float) -> None:
    """Checks that a value is large enough; raises UserError if it is smaller."""
    if value < at_least:
        raise UserError(f"--{name} {value} must be at least {at_least}")
