"""Reads torch files, in its zip format and the one before, without `torch.load`.

Nothing that a file names is imported: what it names is looked up in `lit_gpt.files.pickled`, or refused. All sizes are
compared with the file's before anything of that size is made, which `torch.load(weights_only=True)` does not do. It
also refuses files that run no code: Lit-GPT 2023 wrote its checkpoints with protocol 5 of pickle, and training scripts
put paths and namespaces beside the weights.
"""

import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.files.archives import Member, members_of
from lit_gpt.files.pickled import find
from lit_gpt.files.unpickling import MAX_BYTES, Machine, Made, RefusedError, checked_key

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
"""The first two objects of a file in the format before torch 1.6."""

__all__ = ["RefusedError", "load_weights"]


def load_weights(path: Path) -> Any:
    """Returns what torch saved in a file, on the CPU; tensors stay in the file until they are used.

    Tensors of a file in the format before torch 1.6 are in memory where that format does not align them.

    Raises:
        RefusedError: loading the file could run code.
        Exception: of any kind, if the file is damaged.
    """
    with open(path, "rb") as file:
        head = file.read(4)
    if not head:
        raise ValueError("it is empty")
    return _load_zip(path) if head[:2] == b"PK" else _load_old(path)


def _open_zip(path: Path) -> tuple[dict[str, Member], BytesIO, str]:
    """Returns the members of a file in torch's zip format, its pickle, and the folder of its members."""
    members = members_of(path)
    (name,) = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
    prefix = name.removesuffix("data.pkl")
    if members[name].size > MAX_BYTES:
        raise ValueError(f"its pickle has {members[name].size:,} bytes, more than {MAX_BYTES:,}")
    order = members.get(f"{prefix}byteorder")
    with open(path, "rb") as file:
        if order:
            file.seek(order.start)
            _require_native(file.read(min(order.size, 8)).decode("latin1"))
        file.seek(members[name].start)
        return members, BytesIO(file.read(members[name].size)), prefix


def _load_zip(path: Path) -> Any:
    members, pickled, prefix = _open_zip(path)
    content = _mapped(path)
    storages: dict[str, Tensor] = {}

    def persistent(pid: Any) -> Tensor:
        dtype, key, n = _storage_of(pid, 5)
        member = members[f"{prefix}data/{key}"]
        if n * dtype.itemsize > member.size:
            raise ValueError(f"data/{key[:80]} has {member.size:,} bytes instead of {n * dtype.itemsize:,}")
        return _values(content, member.start, n, dtype, key=key, copies=storages)

    return Machine(find, persistent).run(pickled)


class Place(NamedTuple):
    """Where the values of a tensor are in a file that torch saved in its zip format."""

    key: str
    """Name of the member data/<key> that holds them."""
    dtype: torch.dtype
    offset: int
    """Values of the member before the tensor's first one."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def places(path: Path) -> dict[str, Place]:
    """Returns where the values of each tensor of a state dict are in a file in torch's zip format; reads none of them.

    Raises:
        RefusedError: loading the file could run code.
        Exception: of any kind, if the file is damaged.
    """
    return _places(_open_zip(path)[1])


def _places(pickled: BytesIO) -> dict[str, Place]:
    state = Machine(_find_place, _member_of).run(pickled)
    state = state["model"] if isinstance(state.get("model"), dict) else state  # Lit-GPT 2023 after full finetuning
    return {name: place for name, place in state.items() if isinstance(place, Place)}


def mapper(path: Path) -> Callable[[], Callable[[str], Tensor]]:
    """Returns a function that maps a file in torch's zip format, and returns one that reads a tensor of it by name.

    The pickle is read once and not with each mapping. `load_weights` must have found nothing wrong with the file.

    Raises:
        Exception: of any kind, for a file in another format or with tensors that only `load_weights` knows; by the
            function that is returned, if the file was changed.
    """
    members, pickled, prefix = _open_zip(path)
    found, known = _places(pickled), _identity(path)

    def open_again() -> Callable[[str], Tensor]:
        if _identity(path) != known:
            raise ValueError("it was changed while it was read")
        content, copies = _mapped(path), {}

        def get(name: str) -> Tensor:
            key, dtype, offset, shape, strides = found[name]
            member = members[f"{prefix}data/{key}"]
            values = _values(content, member.start, member.size // dtype.itemsize, dtype, key=key, copies=copies)
            return values.as_strided(shape, strides, offset)

        return get

    return open_again


def _identity(path: Path) -> tuple[int, ...]:
    """Returns what tells a file from one that took its place."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _find_place(module: str, name: str) -> Any:
    if module == "torch._utils" and name.startswith("_rebuild_tensor"):
        return Made(_place)
    return find(module, name)


def _member_of(pid: Any) -> tuple[str, torch.dtype]:
    """Returns the member that holds a storage, and its dtype."""
    dtype, key, _ = _storage_of(pid, 5)
    return key, dtype


def _place(values: Any, offset: int, shape: Sequence[int], strides: Sequence[int], *more: Any) -> Place:
    key, dtype = values
    dtypes = [m for m in more if isinstance(m, torch.dtype)]
    dtype = dtypes[0] if dtypes else dtype
    return Place(key, dtype, offset=offset, shape=tuple(shape), strides=tuple(strides))


def _load_old(path: Path) -> Any:
    """Loads a file in the format before torch 1.6: pickles, followed by the values of each storage."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = BytesIO(file.read(MAX_BYTES))
    if (_plain(head), _plain(head)) != (_MAGIC, _VERSION):
        raise ValueError("it does not begin as a file of torch does")
    system = _plain(head)
    if not isinstance(system, dict) or not system.get("little_endian", True):
        _require_native("big")
    start = head.tell()
    dtypes: dict[str, torch.dtype] = {}

    def announced(pid: Any) -> Tensor:
        dtype, key, n = _storage_of(pid, 6)
        if dtypes.setdefault(key, dtype) != dtype or n * dtype.itemsize > size:
            raise ValueError(f"its storage {key[:80]} does not fit")
        return _part(torch.empty(n, dtype=dtype, device="meta"), pid)

    Machine(find, announced).run(head)  # the values, which follow, can be found only once the dtypes are known
    keys = _plain(head)
    if not isinstance(keys, list) or not set(map(checked_key, keys)) >= dtypes.keys() or len(set(keys)) < len(keys):
        raise ValueError("its list of storages is damaged")
    content, position = _mapped(path), head.tell()
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        n = int.from_bytes(bytes(content[position : position + 8].tolist()), "little")
        places[key] = position + 8, n
        position += 8 + n * dtypes[key].itemsize
        if position > size:
            raise ValueError(f"it has {size:,} bytes, and {position:,} are needed")
    copies: dict[str, Tensor] = {}

    def persistent(pid: Any) -> Tensor:
        dtype, key, n = _storage_of(pid, 6)
        if n > places[key][1]:
            raise ValueError(f"its storage {key[:80]} has {places[key][1]:,} values instead of {n:,}")
        return _part(_values(content, places[key][0], n, dtype, key=key, copies=copies), pid)

    head.seek(start)
    return Machine(find, persistent).run(head)


def _mapped(path: Path) -> Tensor:
    """Returns the bytes of a file, memory-mapped; changes stay in memory."""
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)


def _plain(file: BytesIO) -> Any:
    """Returns the object of a pickle that has no tensors."""
    return Machine(find, _no_tensors).run(file)


def _no_tensors(pid: Any) -> Any:
    raise ValueError("its pickles are out of order")


def _require_native(order: str) -> None:
    if order.strip() != sys.byteorder:
        raise ValueError(f"its values have the byte order {order.strip()[:8]!r}, and this machine has {sys.byteorder}")


def _storage_of(pid: Any, n_fields: int) -> tuple[torch.dtype, str, int]:
    """Returns dtype, key and number of values of the storage that a persistent id names."""
    if not isinstance(pid, tuple) or len(pid) not in (5, n_fields):
        raise ValueError("its pickle names a storage in another way than torch does")
    kind, dtype, key, _, n = pid[:5]
    kind = kind.decode("latin1") if isinstance(kind, bytes) else kind
    key = key.decode("latin1") if isinstance(key, bytes) else key
    if kind != "storage":
        raise RefusedError(str(kind)[:80])
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(n) is not int or n < 0:
        raise ValueError("its pickle names a storage in another way than torch does")
    return dtype, key, n


def _values(content: Tensor, start: int, n: int, dtype: torch.dtype, key: str, copies: dict[str, Tensor]) -> Tensor:
    """Returns n values at a byte of the file; a copy, made once for each key, if their place is not aligned."""
    values = content[start : start + n * dtype.itemsize]
    if start % dtype.itemsize:
        if key not in copies or copies[key].numel() < values.numel():
            copies[key] = values.clone()
        values = copies[key][: values.numel()]
    # a storage of its own, as torch makes one: saving the tensor would otherwise save the whole file, and a random
    # generator takes its state from where the storage begins
    first = values.storage_offset()
    own = values.untyped_storage()[first : first + values.numel()]
    return torch.empty(0, dtype=dtype).set_(own)


def _part(values: Tensor, pid: tuple[Any, ...]) -> Tensor:
    """Returns the part of a storage that a persistent id of the old format names in its last field."""
    if len(pid) < 6 or pid[5] is None:
        return values
    _, offset, n = pid[5]
    if min(offset, n) < 0 or offset + n > values.numel():
        raise ValueError(f"its view of a storage is not within its {values.numel()} values")
    return values[offset : offset + n]
