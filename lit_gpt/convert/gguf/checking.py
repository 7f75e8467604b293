"""Checks the keys of a gguf file's metadata: each is of its type and a possible value, and tensors fit the model."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lit_gpt.convert.gguf.header import GgufTensor
from lit_gpt.convert.gguf.parts import AGAIN
from lit_gpt.errors import UserError, shown

_LARGEST = 2**31
"""Number above which no size of a model is."""


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < _LARGEST


def _is_size_or_none(value: Any) -> bool:
    return value == 0 or _is_size(value)


def _is_factor(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _is_factor_or_none(value: Any) -> bool:
    return value == 0 or _is_factor(value)


def _is_base(value: Any) -> bool:
    return _is_factor(value) and value > 1


def _is_length(value: Any) -> bool:
    return value == 0 or (_is_size(value) and value > 1)


def _is_truth(value: Any) -> bool:
    return type(value) is bool


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1_000 and value.isprintable()


def _is_pattern(value: Any) -> bool:
    return _is_size(value) or (isinstance(value, list) and all(x in (0, 1) for x in value))


_Kind = tuple[Callable[[Any], bool], str]
SIZE: _Kind = (_is_size, "a positive whole number")
SIZE_OR_NONE: _Kind = (_is_size_or_none, "a whole number")
FACTOR: _Kind = (_is_factor, "a positive number")
FACTOR_OR_NONE: _Kind = (_is_factor_or_none, "a number")
BASE: _Kind = (_is_base, "a number above 1")
LENGTH: _Kind = (_is_length, "a number of tokens")
TRUTH: _Kind = (_is_truth, "true or false")
TEXT: _Kind = (_is_text, "a text of one line")
PATTERN: _Kind = (_is_pattern, "a period, or true or false for each layer")


def check_values(values: Mapping[str, Any], kinds: Mapping[str, _Kind], where: str) -> None:
    """Checks that each value is of the kind that is listed for its key.

    Args:
        where: path and beginning of the keys, for the message.

    Raises:
        UserError: one is not.
    """
    for key, (holds, wanted) in kinds.items():
        if key in values and not holds(values[key]):
            raise UserError(f"{where}{key}={shown(values[key])} is not {wanted}; {AGAIN}")


def check_matrix(tensors: Mapping[str, tuple[int, ...]], name: str, path: Path) -> tuple[int, int]:
    """Returns the sizes of a matrix; raises UserError if the file has no such matrix."""
    shape = tensors.get(name)
    if shape is None:
        raise UserError(f"{path} has no tensor {name!r}; {AGAIN}")
    if len(shape) != 2:
        raise UserError(f"{path}: the tensor {name!r} has the shape {list(shape)}, and a matrix is needed; {AGAIN}")
    return shape[0], shape[1]


def check_factors(factors: Mapping[str, list[float]], n: int, path: Path) -> None:
    """Checks that each tensor of divisors has one for each frequency; raises UserError if not.

    Args:
        n: number of frequencies.
    """
    for name, values in factors.items():
        if len(values) != n or not all(map(_is_factor, values)):
            raise UserError(f"{path}: the tensor {name!r} is not {n} positive numbers; {AGAIN}")


def check_shapes(tensors: Mapping[str, GgufTensor], wanted: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Checks that each tensor has the shape that the model needs; raises UserError if not."""
    for name, shape in wanted.items():
        found = tensors[name].shape
        if found != shape:
            shapes = f"{list(found)} instead of {list(shape)}"
            raise UserError(f"{path}: the tensor {name!r} has the shape {shapes}, that of the model; {AGAIN}")
