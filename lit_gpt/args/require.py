"""What a value has to be."""

from lit_gpt.errors import UserError


def require(name: str, value: float, at_least: float) -> None:
    """Raises: UserError if `value` is smaller."""
    if value < at_least:
        raise UserError(f"--{name} {value} must be at least {at_least}")
