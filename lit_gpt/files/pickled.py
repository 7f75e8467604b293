"""What stands for the functions and classes that a file of tensors names: our own, which check what they are given."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_gpt.files.tensors import DTYPES
from lit_gpt.files.unpickling import Made, RefusedError, checked_key

_STORAGES = {storage.__name__: dtype for dtype, (_, storage) in DTYPES.items()} | {"UntypedStorage": torch.uint8}
_STORAGES |= {"ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128}
_PLACEHOLDERS = {
    "argparse": ("Namespace",),
    "pathlib": ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("scalar", "_reconstruct"),
    "numpy._core.multiarray": ("scalar", "_reconstruct"),
    "torch": ("Tensor",),
    "torch.nn.parameter": ("Parameter",),
}
"""Harmless classes that may be stored beside the weights."""
_MOST_EXPANDED = 16 * 2**20
"""Largest number of bytes of a tensor that has more values than the file holds for it, as `Tensor.expand` makes."""


class _Placeholder:
    """A stand-in for an object that is not needed; accepts any arguments and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


def find(module: str, name: str) -> Any:
    """Returns what stands for a name in a pickle.

    Raises:
        RefusedError: it is no name that tensors need.
    """
    module = "builtins" if module == "__builtin__" else module  # its name in Python 2, and up to protocol 2
    if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
        return dtype
    if module in ("torch", "torch.storage") and name in _STORAGES:
        return _STORAGES[name]
    if (module, name) in _MADE:
        return Made(_MADE[module, name])
    if name in _PLACEHOLDERS.get(module, ()):
        return Made(_Placeholder)
    raise RefusedError(f"{module}.{name}"[:200])


def _view(values: Tensor, offset: int, shape: Sequence[int], strides: Sequence[int], *more: Any) -> Tensor:
    """Returns a view of a storage, as torch's `_rebuild_tensor`, `_rebuild_tensor_v2` and `_rebuild_tensor_v3` do."""
    dtypes = [m for m in more if isinstance(m, torch.dtype)]
    values = values.view(dtypes[0]) if dtypes else values
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if min([offset, *shape, *strides]) < 0 or (0 not in shape and last >= values.numel()):
        raise ValueError(f"a tensor of shape {_shown(shape)} is not within its {values.numel()} values")
    n_bytes = math.prod(shape) * values.itemsize
    if n_bytes > max(values.nbytes, _MOST_EXPANDED):
        raise ValueError(f"a tensor of shape {_shown(shape)} repeats its {values.numel()} values")
    return values.as_strided(tuple(shape), tuple(strides), values.storage_offset() + offset)


def _shown(shape: Sequence[int]) -> str:
    return str(tuple(shape))[:100]


def _with_attributes(make: Any, kind: Any, args: tuple[Any, ...], state: Any) -> Tensor:
    """Returns a tensor that had Python attributes, without them."""
    if not isinstance(make, Made) or make.make not in (_view, _parameter):
        raise ValueError("its pickle makes a tensor in another way than torch does")
    return make.make(*args)


def _parameter(x: Tensor, *more: Any) -> Tensor:
    return x


def _sparse(*args: Any) -> Tensor:
    """Returns an empty tensor with a layout that no model of ours has, so that the tensor is refused by its name."""
    return torch.empty(0, layout=torch.sparse_coo)


def _encode(text: str, encoding: str) -> bytes:
    """Returns bytes, which pickles of protocol 2 hold as text."""
    if encoding != "latin1":
        raise ValueError(f"its pickle has bytes in the encoding {encoding!r}"[:200])
    return text.encode("latin1")


def _set(items: list[Any] | tuple[Any, ...] = ()) -> set[Any]:
    return set(map(checked_key, items))


def _bytearray(content: bytes = b"") -> bytearray:
    if not isinstance(content, bytes):  # a number would be a size
        raise ValueError("its pickle makes a bytearray of something else than bytes")
    return bytearray(content)


def _ordered(items: Sequence[tuple[Any, Any]] = ()) -> OrderedDict[Any, Any]:
    return OrderedDict((checked_key(key), value) for key, value in items)


_MADE: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): lambda *_: {},
    ("collections", "Counter"): lambda *counts: dict(*counts),
    ("builtins", "set"): _set,
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "complex"): lambda *parts: complex(*parts),
    ("_codecs", "encode"): _encode,
    ("torch", "Size"): tuple,
    ("torch", "device"): torch.device,
    ("torch.serialization", "_get_layout"): _Placeholder,
    ("torch._utils", "_rebuild_tensor"): _view,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_tensor_v3"): _view,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._utils", "_rebuild_sparse_tensor"): _sparse,
    ("torch._tensor", "_rebuild_from_type_v2"): _with_attributes,
}
"""Replacements for the functions and classes that a file of tensors needs."""
