"""Finds the parts of a model that llama.cpp's gguf-split divided: <name>-00001-of-00003.gguf and so on."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
COUNT, _TENSORS = "split.count", "split.tensors.count"
AGAIN = "get it again"


def parts_of(path: Path) -> list[Path]:
    """Returns all files of the model to which `path` belongs, in order; usually just that one.

    Raises:
        UserError: a part is missing; the message names it.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        return [path]
    name, number, total = match.groups()
    if not 1 <= int(number) <= int(total):
        return [path]
    names = [f"{name}-{i:05d}-of-{total}.gguf" for i in range(1, int(total) + 1)]
    there = {p.name for p in path.parent.iterdir()}  # at once: a name may count 99,999 parts
    if missing := [part for part in names if part not in there]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{path.parent} lacks {missing[0]}{more}, a part of the model in {path.name}; get it, too")
    return [path.with_name(part) for part in names]


def require_whole(metadata: Mapping[str, Any], n_tensors: int, parts: list[Path]) -> None:
    """Checks that the files are all those that the first one's metadata announce; raises UserError if not."""
    count, tensors = metadata.get(COUNT, 0), metadata.get(_TENSORS, n_tensors)
    if type(count) is not int or type(tensors) is not int:
        raise UserError(f"{parts[0]}: {COUNT} and {_TENSORS} are not whole numbers; {AGAIN}")
    if count > 1 and count != len(parts):
        wanted = f"<name>-00001-of-{count:05d}.gguf and so on"
        raise UserError(f"{parts[0]} is one of {count} parts of a model; have all of them in one folder, as {wanted}")
    if tensors != n_tensors:
        raise UserError(f"{parts[0]} and the parts after it hold {n_tensors} tensors instead of {tensors}; {AGAIN}")
