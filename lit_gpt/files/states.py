"""Reads and writes state dicts in torch files, such as lit_model.pth."""

import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from lit_gpt.errors import DiskError, UserError
from lit_gpt.files.behind import Behind, FileBehind
from lit_gpt.files.pickles import RefusedError, load_weights, mapper
from lit_gpt.files.tensors import (
    DTYPES,
    Later,
    OneFileOpen,
    Opened,
    Spec,
    check_names,
    checked,
    first_line,
    raw,
    spec_of,
)
from lit_gpt.files.whole import allocate, replace_with, require_room

_ALIGNMENT = 64
"""Number of bytes to whose multiples tensors are aligned in torch files, as by `torch.save`."""


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Writes tensors that are in memory to `path`, completely or not at all (a temporary name, then a rename).

    Tensors that are `Later` are made and written one after the other.

    Args:
        state: what `torch.save` takes and `load_objects` reads, with `Later` in the place of some tensors.

    Raises:
        DiskError: the disk is full or fails.
    """
    leaves: dict[int, tuple[str, Tensor | Later]] = {}
    saved = _with_leaves(state, leaves)
    if any(isinstance(leaf, Later) for _, leaf in leaves.values()):
        stored = {key: leaf.spec if isinstance(leaf, Later) else spec_of(leaf) for key, leaf in leaves.values()}
        tensors = ((key, leaf.get() if isinstance(leaf, Later) else leaf) for key, leaf in leaves.values())
        require_room(sum(spec.n_bytes for spec in stored.values()), path)
        made = checked(stored, tensors)
        replace_with(path, lambda temporary: _write_archive(_pickled(saved), stored, made, temporary))
        return

    def write(temporary: Path) -> None:
        try:
            torch.save(state, temporary)
        except RuntimeError as e:  # torch's writer turns a full disk into one
            raise DiskError(f"{path} could not be written ({first_line(e)}); is the disk full?") from e

    replace_with(path, write)


def load_state(path: Path, remedy: str) -> dict[str, Tensor]:
    """Loads a file of named tensors that `save_state` or `save_stream` wrote, memory-mapped.

    Raises:
        UserError: the file is missing or damaged, or holds something else; the message says to run `remedy`.
    """
    state = load_objects(path, remedy)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):  # Lit-GPT 2023 after full finetuning
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise UserError(f"{path} holds something else than named tensors; make it again with {remedy}")
    try:
        check_names(state)
    except ValueError as e:
        raise UserError(f"{path} is damaged ({e}); make it again with {remedy}") from e
    return state


def load_objects(path: Path, remedy: str) -> Any:
    """Loads what `torch.save` wrote to a file: tensors, memory-mapped, and plain values.

    Raises:
        UserError: the file is missing or damaged; the message says to run `remedy`.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}; make it with {remedy}")
    try:
        return load_weights(path)
    except RefusedError as e:
        named = first_line(e)
        raise UserError(
            f"{path} names {named} and is not loaded: it could run code; make it again with {remedy}"
        ) from e
    except (OSError, MemoryError):
        raise
    except Exception as e:  # a damaged pickle may raise anything
        raise UserError(f"{path} is truncated or damaged ({first_line(e)}); make it again with {remedy}") from e


def open_state(path: Path, remedy: str) -> tuple[dict[str, Spec], Callable[[str], Tensor]]:
    """Returns the specs of a state dict, and a function that reads one tensor by name and keeps none in memory.

    Raises:
        UserError: the file is missing or damaged, or has a tensor of a kind that no checkpoint has; the message says
            to run `remedy`.
    """

    def open_file(path: Path) -> Opened:
        state = load_state(path, remedy)
        for name, x in state.items():
            if x.dtype not in DTYPES or x.layout != torch.strided:
                raise UserError(f"{path}: {name!r} is of dtype {x.dtype}, {x.layout}; make it again with {remedy}")
        return Opened({name: spec_of(x) for name, x in state.items()}, state.__getitem__)

    specs = open_file(path).specs
    try:
        open_again = mapper(path)
    except Exception:  # of the format before torch 1.6, for one
        return specs, OneFileOpen(dict.fromkeys(specs, path), open_file)

    def open_mapped(path: Path) -> Opened:
        try:
            return Opened(specs, open_again())
        except (OSError, ValueError, RuntimeError) as e:
            raise UserError(f"{path} cannot be read ({first_line(e)}); run this again") from e

    return specs, OneFileOpen(dict.fromkeys(specs, path), open_mapped)


def save_stream(
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, Tensor]],
    path: Path,
    shared: Mapping[str, str] | None = None,
) -> None:
    """Writes the file that `save_state` would write, from tensors that come one at a time and are not kept.

    The archive is written here and not by `torch.save`, which needs all tensors at once. What torch offers instead
    (saving under `torch.serialization.skip_data`, then filling the gaps) is a prototype by its own documentation, and
    gives the gaps' offsets by a private attribute only.

    Args:
        specs: shape and dtype of each tensor, in the order of the file.
        tensors: in any order; may be a generator.
        shared: name -> name of the tensor whose values it shares; these names are not in `tensors`.

    Raises:
        DiskError: the disk has no room for the file.
    """
    shared = shared or {}
    require_room(sum(Spec(*spec).n_bytes for name, spec in specs.items() if name not in shared), path)
    replace_with(path, lambda temporary: _write_state(specs, tensors, temporary, shared))


def _write_state(
    specs: Mapping[str, Spec], tensors: Iterable[tuple[str, Tensor]], path: Path, shared: Mapping[str, str]
) -> None:
    """Writes torch's zip archive: data.pkl, byteorder, version, and data/0, data/1 ... with the values."""
    stored = {name: Spec(*spec) for name, spec in specs.items() if name not in shared}
    assert all(specs[name] == specs[owner] and owner in stored for name, owner in shared.items()), shared
    keys = {name: str(i) for i, name in enumerate(stored)}
    pickled = _pickled({n: _Saved(keys[shared.get(n, n)], Spec(*spec)) for n, spec in specs.items()})
    by_key = {keys[name]: spec for name, spec in stored.items()}

    def with_keys() -> Iterator[tuple[str, Tensor]]:
        for name, x in checked(stored, tensors):
            yield keys[name], x
            del x  # before the next one is made

    _write_archive(pickled, by_key, with_keys(), path)


def _write_archive(
    pickled: bytes, stored: Mapping[str, Spec], tensors: Iterable[tuple[str, Tensor]], path: Path
) -> None:
    """Writes the archive; the tensors are named by their keys in the pickle.

    https://docs.pytorch.org/docs/stable/notes/serialization.html#serialized-file-format-for-torch-save
    """
    records = {"data.pkl": pickled, "byteorder": sys.byteorder.encode(), "version": b"3\n"}
    with open(path, "wb") as made:
        allocate(made, sum(spec.n_bytes for spec in stored.values()))
    with Behind() as behind:
        file = FileBehind(behind, path)
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in records.items():
                _write_record(archive, file, name, content)
            for key, x in tensors:
                _write_record(archive, file, f"data/{key}", raw(x))
                del x  # before the next one is made


def _write_record(archive: zipfile.ZipFile, file: FileBehind, name: str, content: Any) -> None:
    """Appends a member to the archive, with its content aligned to _ALIGNMENT."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    size_of_header, size_of_zip64, size_of_padding = 30, 20, 4  # of the fields before the content, without the padding
    start = file.tell() + size_of_header + len(entry.filename) + size_of_zip64 + size_of_padding
    n_padding = -start % _ALIGNMENT
    entry.extra = b"FB" + n_padding.to_bytes(2, "little") + bytes(n_padding)
    with archive.open(entry, "w", force_zip64=True) as record:
        record.write(content)


@dataclass(frozen=True)
class _Saved:
    """A tensor in data.pkl, which pickles as torch's tensors do."""

    key: str
    """Name of the record data/<key> that holds the values."""
    spec: Spec

    def __reduce__(self) -> tuple[Any, ...]:
        strides = torch.empty(self.spec.shape, device="meta").stride()
        arguments = (_Values(self.key, self.spec), 0, self.spec.shape, strides, False, OrderedDict())
        return _rebuild_tensor_v2, arguments


class _Values(NamedTuple):
    """The storage of a `_Saved`, which torch files name by a persistent id."""

    key: str
    spec: Spec


class _StatePickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if not isinstance(obj, _Values):
            return None
        return "storage", DTYPES[obj.spec.dtype][1], obj.key, "cpu", torch.Size(obj.spec.shape).numel()


def _with_leaves(value: Any, leaves: dict[int, tuple[str, Tensor | Later]]) -> Any:
    """Returns a value with a `_Saved` in the place of each tensor in it.

    Args:
        leaves: gets the tensors, with their keys.
    """
    if isinstance(value, Tensor | Later):
        key, _ = leaves.setdefault(id(value), (str(len(leaves)), value))
        return _Saved(key, spec_of(value) if isinstance(value, Tensor) else value.spec)
    if isinstance(value, Mapping):
        return {k: _with_leaves(v, leaves) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_with_leaves(v, leaves) for v in value])
    return value


def _pickled(state: Any) -> bytes:
    buffer = BytesIO()
    _StatePickler(buffer, protocol=2).dump(state)  # the protocol that weights_only reads
    return buffer.getvalue()
