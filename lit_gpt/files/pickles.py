"""Reads tensors from torch files that `torch.load(weights_only=True)` refuses although they run no code.

Lit-GPT 2023 wrote its checkpoints with protocol 5 of pickle, and training scripts put paths and namespaces beside the
weights. Nothing that a file names is imported here: tensors are made by our own code, and what is harmless becomes a
`_Placeholder`. Everything else is refused.
"""

import copy
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.files.tensors import DTYPES

_STORAGES = {storage.__name__: dtype for dtype, (_, storage) in DTYPES.items()} | {"UntypedStorage": torch.uint8}
_PLACEHOLDERS = {
    "argparse": ("Namespace",),
    "pathlib": ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("scalar", "_reconstruct"),
    "numpy._core.multiarray": ("scalar", "_reconstruct"),
    "_codecs": ("encode",),
    "torch": ("device", "Tensor"),
    "torch.nn.parameter": ("Parameter",),
}
"""Harmless classes that may be stored beside the weights."""


class RefusedError(Exception):
    """A file that names something that loading would import and call; the message says what."""


class _Placeholder:
    """A stand-in for an object that is not needed; accepts any arguments and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def load_weights(path: Path, mmap: bool = True) -> Any:
    """Loads what torch saved in a file, on the CPU.

    Args:
        mmap: tensors stay in the file until they are used; only for files in torch's zip format.

    Raises:
        RefusedError: loading the file could run code.
        Exception: of any kind, if the file is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as e:
        if zipfile.is_zipfile(path):
            return load_pickle(path)
        named = re.search(r"GLOBAL (\S+) (?:was not|whose)", str(e))
        raise RefusedError(named[1] if named else "") from e


def load_pickle(path: Path) -> Any:
    """Loads what torch saved in its zip format, with memory-mapped tensors.

    Raises:
        RefusedError: loading the file could run code.
        Exception: of any kind, if the file is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        (entry,) = [e for e in archive.infolist() if e.filename.endswith("/data.pkl") or e.filename == "data.pkl"]
        prefix = entry.filename.removesuffix("data.pkl")
        with archive.open(entry) as file:
            return _Reader(file, path, archive, prefix).load()


class _Reader(pickle.Unpickler):
    """An unpickler that imports nothing."""

    def __init__(self, file: Any, path: Path, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(file, encoding="utf-8")
        self.archive, self.prefix = archive, prefix
        self.bytes = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # its name in Python 2, and up to protocol 2
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) in _MADE:
            return _MADE[module, name]
        if name in _PLACEHOLDERS.get(module, ()):
            return _Placeholder
        raise RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """Returns the values of a record of the archive, (n,)."""
        kind, dtype, key, _, n = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise RefusedError(str(kind))
        entry = self.archive.getinfo(f"{self.prefix}data/{key}")
        start = _content_start(self.archive, entry)
        if entry.compress_type != zipfile.ZIP_STORED or n * dtype.itemsize > entry.file_size:
            raise ValueError(f"data/{key} has {entry.file_size} bytes")
        values = self.bytes[start : start + n * dtype.itemsize]
        return (values if start % dtype.itemsize == 0 else values.clone()).view(dtype)


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
    with zipfile.ZipFile(path) as archive:
        (entry,) = [e for e in archive.infolist() if e.filename.endswith("/data.pkl") or e.filename == "data.pkl"]
        with archive.open(uncompared(entry)) as file:
            state = _PlaceReader(file, path, archive, "").load()
    state = state["model"] if isinstance(state.get("model"), dict) else state  # Lit-GPT 2023 after full finetuning
    return {name: place for name, place in state.items() if isinstance(place, Place)}


def uncompared(entry: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """Returns a member of an archive as zipfile reads it without comparing its checksum."""
    entry = copy.copy(entry)
    entry.CRC = None  # type: ignore[assignment]
    return entry


class _PlaceReader(_Reader):
    """An unpickler that makes a `Place` of each tensor."""

    def find_class(self, module: str, name: str) -> Any:
        rebuilds = module == "torch._utils" and name.startswith("_rebuild_tensor")
        return _place if rebuilds else super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """Returns the member that holds a storage, and its dtype."""
        _, dtype, key, *_ = pid
        return str(key), dtype


def _place(values: Any, offset: int, shape: Sequence[int], strides: Sequence[int], *more: Any) -> Place:
    key, dtype = values
    dtypes = [m for m in more if isinstance(m, torch.dtype)]
    dtype = dtypes[0] if dtypes else dtype
    return Place(key, dtype, offset=offset, shape=tuple(shape), strides=tuple(strides))


def _content_start(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Returns the byte at which the content of an archive member starts, after its header of variable length."""
    assert archive.fp is not None
    position = archive.fp.tell()
    archive.fp.seek(entry.header_offset + 26)
    sizes = archive.fp.read(4)
    archive.fp.seek(position)
    return entry.header_offset + 30 + int.from_bytes(sizes[:2], "little") + int.from_bytes(sizes[2:], "little")


def _view(values: Tensor, offset: int, shape: Sequence[int], strides: Sequence[int], *more: Any) -> Tensor:
    """Returns a view of a storage, as torch's `_rebuild_tensor`, `_rebuild_tensor_v2` and `_rebuild_tensor_v3` do."""
    dtypes = [m for m in more if isinstance(m, torch.dtype)]
    values = values.view(dtypes[0]) if dtypes else values
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if min([offset, *shape, *strides]) < 0 or (0 not in shape and last >= values.numel()):
        raise ValueError(f"a tensor of shape {tuple(shape)} is not within its {values.numel()} values")
    return values.as_strided(tuple(shape), tuple(strides), values.storage_offset() + offset)


def _with_attributes(make: Any, kind: Any, args: tuple[Any, ...], state: Any) -> Tensor:
    """Returns a tensor that had Python attributes, without them."""
    return make(*args)


def _parameter(x: Tensor, *more: Any) -> Tensor:
    return x


_MADE = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("builtins", "set"): set,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _view,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_tensor_v3"): _view,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _with_attributes,
}
"""Replacements for the functions and classes that a file of tensors needs."""
