"""Reads and writes tensors one at a time, so that a model need not fit in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from lit_gpt.errors import one_line, shown

DTYPES: dict[torch.dtype, tuple[str, type]] = {
    torch.float64: ("F64", torch.DoubleStorage),
    torch.float32: ("F32", torch.FloatStorage),
    torch.bfloat16: ("BF16", torch.BFloat16Storage),
    torch.float16: ("F16", torch.HalfStorage),
    torch.int64: ("I64", torch.LongStorage),
    torch.int32: ("I32", torch.IntStorage),
    torch.int16: ("I16", torch.ShortStorage),
    torch.int8: ("I8", torch.CharStorage),
    torch.uint8: ("U8", torch.ByteStorage),
    torch.bool: ("BOOL", torch.BoolStorage),
}
"""Supported dtypes: dtype -> (its name in safetensors, its storage class in torch files)."""
_LONGEST_NAME = 500
"""Largest number of characters of a tensor's name."""
MAPPED_BYTES = 64 * 2**20
"""Number of bytes read from a mapped file after which it is mapped anew, to release the pages that were touched."""


class Spec(NamedTuple):
    """A tensor's shape and dtype, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def spec_of(x: Tensor) -> Spec:
    """Returns the shape and dtype of `x`, which may be on the meta device."""
    return Spec(tuple(x.shape), x.dtype)


@dataclass(frozen=True, eq=False)
class Later:
    """A tensor that is made when a file is written, and not kept."""

    spec: Spec
    get: Callable[[], Tensor]
    """Function that makes it, on the CPU."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape


class Opened(NamedTuple):
    """A file of tensors, open for reading."""

    specs: dict[str, Spec]
    get: Callable[[str], Tensor]
    is_mapped: bool = True
    """Whether the file is memory-mapped; False if all of it was read into memory, as some formats require."""


class OneFileOpen:
    """A reader of tensors by name from several files, which keeps at most one file open and little of it in memory."""

    def __init__(self, paths: Mapping[str, Path], open_file: Callable[[Path], Opened]) -> None:
        self.paths, self.open_file = paths, open_file
        self.path: Path | None = None
        self.opened: Opened | None = None
        self.handed_out: list[ref[Tensor]] = []
        self.n_handed_out = 0

    def __call__(self, name: str) -> Tensor:
        path = self.paths[name]
        if self.opened is None or path != self.path or (self.opened.is_mapped and self.n_released() > MAPPED_BYTES):
            self.opened = None  # close the previous file first
            self.path, self.opened, self.handed_out, self.n_handed_out = path, self.open_file(path), [], 0
        x = self.opened.get(name).detach()  # an object of its own, which the opened file does not hold
        self.handed_out.append(ref(x))
        self.n_handed_out += x.nbytes
        return x

    def n_released(self) -> int:
        """Returns the bytes of the open file that were read and are no longer used by a live tensor."""
        if self.n_handed_out <= MAPPED_BYTES:
            return 0
        alive = (x for reference in self.handed_out if (x := reference()) is not None)
        return self.n_handed_out - sum(x.nbytes for x in alive)


def checked(specs: Mapping[str, Spec], tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yields `tensors`, after asserting that each is in `specs` with its shape and dtype; keeps none of them."""
    left = dict(specs)
    for name, x in tensors:
        assert name in left, f"{name} was not announced, or comes twice"
        spec = left.pop(name)
        assert spec_of(x) == spec, f"{name} is {spec_of(x)}, announced was {spec}"
        yield name, x
        del x
    assert not left, f"{next(iter(left))} did not come"


def raw(x: Tensor) -> Any:
    """Returns the bytes of `x` as an array, which shares memory with `x` if that is contiguous and on the CPU."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def check_names(names: Iterable[str]) -> None:
    """Checks that each tensor name can be shown in a message; raises ValueError if not."""
    for name in names:
        if not isinstance(name, str) or len(name) > _LONGEST_NAME or not name.isprintable():
            raise ValueError(f"it has a tensor with the name {shown(name)}")


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, without its middle if it is long, else its type."""
    return one_line((str(error).splitlines() or [""])[0], 300) or type(error).__name__
