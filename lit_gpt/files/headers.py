"""Reads the header of a safetensors file, and compares all it says with the file.

The format: https://huggingface.co/docs/safetensors/index#format
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lit_gpt.errors import one_line, shown
from lit_gpt.files.tensors import DTYPES, check_names

ONLY_READ = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0"}
"""Dtypes of quantized weights, which are read and not written: dtype -> its name in safetensors."""
FROM_SAFETENSORS = {name: dtype for dtype, (name, _) in DTYPES.items()}
FROM_SAFETENSORS |= {name: dtype for dtype, name in ONLY_READ.items()}
"""Name of a dtype in safetensors -> the dtype."""
_MAX_HEADER = 16 * 2**20
"""Largest size of a header, which has about 110 bytes for each tensor."""
_MOST_DIGITS = 19


class _Stored(NamedTuple):
    """What the header says about a tensor."""

    dtype: str
    """Name of the dtype in safetensors, which may be one that we do not know."""
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, _Stored]:
    """Returns dtype and shape of each tensor of a safetensors file, in the order of their values.

    Raises:
        ValueError: the header is damaged, or does not fit the file; the message says where.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        n = int.from_bytes(file.read(8), "little")
        if n > size - 8:
            raise ValueError(f"its header has {n:,} bytes, and the file {size:,}")
        if n > _MAX_HEADER:
            raise ValueError(f"its header has {n:,} bytes, more than {_MAX_HEADER:,}")
        text = file.read(n)
    try:
        fields = json.loads(text, object_pairs_hook=_object, parse_int=_whole, parse_constant=_no_number)
    except RecursionError as e:
        raise ValueError("its header is nested too deeply") from e
    if not isinstance(fields, dict):
        raise ValueError("its header is not an object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise ValueError("its __metadata__ holds something else than texts")
    check_names(fields)
    found: list[tuple[int, int, str, _Stored]] = []
    for name, stated in fields.items():
        found.append((*_offsets(name, stated), name, _stored(name, stated)))
    found.sort(key=lambda item: item[:2])
    position = 0
    for start, end, name, stored in found:
        if start != position:
            raise ValueError(f"{shown(name)} starts at byte {start:,} of the values instead of {position:,}")
        if stored.dtype in FROM_SAFETENSORS and end - start != _n_bytes(stored):
            raise ValueError(f"{shown(name)} has {end - start:,} bytes instead of {_n_bytes(stored):,}")
        position = end
    if position != size - 8 - n:
        raise ValueError(f"its values have {size - 8 - n:,} bytes instead of {position:,}")
    return {name: stored for *_, name, stored in found}


def _n_bytes(stored: _Stored) -> int:
    return math.prod(stored.shape) * FROM_SAFETENSORS[stored.dtype].itemsize


def _stored(name: str, stated: Any) -> _Stored:
    """Returns the dtype and the shape that an entry of the header states."""
    dtype, shape = stated["dtype"], stated["shape"]
    if not isinstance(dtype, str) or len(dtype) > 20 or not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise ValueError(f"{shown(name)} has the dtype {shown(dtype)}, shape {shown(shape)}")
    return _Stored(dtype, tuple(shape))


def _offsets(name: str, stated: Any) -> tuple[int, int]:
    """Returns where a tensor's values start and end, by its entry in the header."""
    if not isinstance(stated, dict) or stated.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"its header says of {shown(name)} something else than dtype, shape and data_offsets")
    offsets = stated["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)) or offsets[0] > offsets[1]:
        raise ValueError(f"{shown(name)} has the data_offsets {shown(offsets)}")
    return offsets[0], offsets[1]


def _is_size(x: Any) -> bool:
    return type(x) is int and x >= 0


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object; raises ValueError if a name comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, n in counts.items() if n > 1)
        raise ValueError(f"its header has {shown(twice)} twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"its header has the number {one_line(digits, 30)}")
    return int(digits)


def _no_number(text: str) -> None:
    raise ValueError(f"its header has {text}, which is no number")
