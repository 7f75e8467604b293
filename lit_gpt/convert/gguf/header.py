"""Reads the header of a gguf file, and compares all that it says with the file before anything of that size is made.

The reader of the package gguf has no such bounds: a count that is damaged makes it read for hours, or past the end.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.convert.gguf.parts import AGAIN
from lit_gpt.errors import UserError, shown
from lit_gpt.files.tensors import first_line

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
"""Types of single values, by their number: formats of `struct`."""
_BOOL, _STRING, _ARRAY = 7, 8, 9
_MOST_ENTRIES = 2**22
"""Largest number of entries of all arrays together: a vocabulary of 260,000 tokens with its merges has 1,300,000."""
_MOST_TENSORS = 2**17
_LONGEST_KEY, _LONGEST_NAME, _MOST_DIMENSIONS = 256, 256, 4
_SMALLEST_PAIR, _SMALLEST_TENSOR = 13, 32
"""Number of bytes of a key with its value, and of a tensor's entry, at least."""
_ALIGNMENT, _MAX_ALIGNMENT = 32, 2**20


class GgufTensor(NamedTuple):
    """A tensor of a file."""

    kind: str
    """Name of its type in ggml."""
    shape: tuple[int, ...]
    """Sizes in the order of torch, the last one that of a row."""
    start: int
    """Byte of the file at which its values begin."""
    n_bytes: int


class Header(NamedTuple):
    """What a file says about itself."""

    values: dict[str, Any]
    """All keys with their values: numbers, booleans, strings, or lists of one of these."""
    tensors: dict[str, GgufTensor]


def read_header(path: Path) -> Header:
    """Returns the header of a file, all of which fits the file.

    Raises:
        UserError: the file is damaged, of another version or byte order, or the package gguf is missing.
    """
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ModuleNotFoundError as e:
        raise UserError(f'{path} needs the package gguf; run: pip install "gguf>=0.10"') from e
    blocks = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    size = path.stat().st_size
    if not size:
        raise UserError(f"{path} is empty; {AGAIN}")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            reader = _Reader(content, size)
            n_tensors, n_pairs = reader.counts()
            values = reader.pairs(n_pairs)
            return Header(values, reader.tensors(n_tensors, values, blocks))
    except ValueError as e:
        raise UserError(f"{path} is truncated or damaged ({first_line(e)}); {AGAIN}") from e


class _Reader:
    """A position in the bytes of a file, which never goes beyond their end."""

    def __init__(self, content: mmap.mmap, size: int) -> None:
        self.content, self.size = content, size
        self.position = 0
        self.entries_left = _MOST_ENTRIES

    def take(self, n_bytes: int) -> bytes:
        """Returns the next bytes; raises ValueError if the file has fewer."""
        end = self.position + n_bytes
        if end > self.size:
            raise ValueError(f"its header goes on after byte {self.position:,}, and it has {self.size:,}")
        found = self.content[self.position : end]
        self.position = end
        return found

    def number(self, format: str) -> Any:
        return struct.unpack(format, self.take(struct.calcsize(format)))[0]

    def text(self, what: str, longest: int | None = None) -> str:
        """Returns a string of UTF-8, with its length before it."""
        start, n_bytes = self.position, self.number("<Q")
        if longest is not None and n_bytes > longest:
            raise ValueError(f"{what} at byte {start:,} has {n_bytes:,} bytes, more than {longest}")
        try:
            return self.take(n_bytes).decode()
        except UnicodeDecodeError as e:
            raise ValueError(f"{what} at byte {start:,} is not UTF-8") from e

    def texts(self, n: int, key: str) -> list[str]:
        """Returns the next n strings, entries of a list, as `text` does for one but in a third of the time."""
        content, length, position = self.content, struct.Struct("<Q"), self.position
        found = []
        for i in range(n):
            start = position + 8
            if start <= self.size:
                position = start + length.unpack_from(content, position)[0]
            if start > self.size or position > self.size:
                raise ValueError(f"entry {i} of {key} goes on after the last of {self.size:,} bytes")
            try:
                found.append(content[start:position].decode())
            except UnicodeDecodeError as e:
                raise ValueError(f"entry {i} of {key} at byte {start - 8:,} is not UTF-8") from e
        self.position = position
        return found

    def counts(self) -> tuple[int, int]:
        """Returns the number of tensors and of keys, after what every file begins with."""
        if (magic := self.take(4)) != _MAGIC:
            raise ValueError(f"it begins with {magic!r} instead of {_MAGIC!r}")
        version = self.number("<I")
        if version.to_bytes(4, "little")[::-1] in (v.to_bytes(4, "little") for v in _VERSIONS):
            raise ValueError("it is in the other byte order, big-endian, which is not read")
        if version not in _VERSIONS:
            raise ValueError(f"it is of version {version}; known are {', '.join(map(str, _VERSIONS))}")
        n_tensors, n_pairs = self.number("<Q"), self.number("<Q")
        if n_tensors * _SMALLEST_TENSOR + n_pairs * _SMALLEST_PAIR > self.size or n_tensors > _MOST_TENSORS:
            raise ValueError(
                f"it has {self.size:,} bytes, and says that they hold {n_tensors:,} tensors, {n_pairs:,} keys"
            )
        return n_tensors, n_pairs

    def pairs(self, n: int) -> dict[str, Any]:
        """Returns the next n keys with their values."""
        found: dict[str, Any] = {}
        for _ in range(n):
            start = self.position
            key = self.text("a key", _LONGEST_KEY)
            if not key or not key.isprintable() or key in found:
                raise ValueError(f"the key {shown(key)} at byte {start:,} is damaged, or comes twice")
            found[key] = self.value(self.number("<I"), key)
            self.entries_left -= 1
        return found

    def value(self, kind: int, key: str) -> Any:
        """Returns the next value, of a type that is given by its number."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text(f"the value of {key}")
        if kind == _BOOL:
            return _truth(self.take(1), key)[0]
        if kind != _ARRAY:
            raise ValueError(f"the value of {key} is of the unknown type {kind}")
        kind, n = self.number("<I"), self.number("<Q")
        smallest = struct.calcsize(_SCALARS[kind]) if kind in _SCALARS else {_BOOL: 1, _STRING: 8}.get(kind)
        if smallest is None:
            raise ValueError(f"the list {key} has entries of type {kind}")
        if n * smallest > self.size - self.position or n > self.entries_left:
            raise ValueError(f"the list {key} says that it has {n:,} entries")
        self.entries_left -= n
        if kind == _STRING:
            return self.texts(n, key)
        content = self.take(n * smallest)
        return _truth(content, key) if kind == _BOOL else list(struct.unpack(f"<{n}{_SCALARS[kind][1]}", content))

    def tensors(self, n: int, values: dict[str, Any], blocks: dict[int, tuple[str, int, int]]) -> dict[str, GgufTensor]:
        """Returns the next n tensors, by name.

        Args:
            values: the file's keys, of which one may state the alignment.
            blocks: name of each type, with the number of values and of bytes of its blocks, by the type's number.
        """
        alignment = values.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise ValueError(f"general.alignment={shown(alignment)} is no power of 2")
        found: dict[str, GgufTensor] = {}
        for _ in range(n):
            name, tensor = self.tensor(blocks)
            if name in found:
                raise ValueError(f"the tensor {name!r} comes twice")
            if tensor.start % alignment:
                raise ValueError(f"the tensor {name!r} starts at byte {tensor.start:,}, which is not aligned")
            found[name] = tensor
        first = self.position + -self.position % alignment
        found = {name: t._replace(start=first + t.start) for name, t in found.items()}
        self.require_apart(found)
        return found

    def tensor(self, blocks: dict[int, tuple[str, int, int]]) -> tuple[str, GgufTensor]:
        """Returns the next tensor with its name; `start` counts from the first tensor's values."""
        start = self.position
        name = self.text("the name of a tensor", _LONGEST_NAME)
        if not name or not name.isprintable():
            raise ValueError(f"the name of a tensor at byte {start:,} is {shown(name)}")
        n_dimensions = self.number("<I")
        if not 1 <= n_dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"the tensor {name!r} has {n_dimensions} dimensions")
        sizes = [self.number("<Q") for _ in range(n_dimensions)]
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in blocks:
            raise ValueError(f"the tensor {name!r} is of the unknown type {kind}")
        label, n_values, n_bytes = blocks[kind]
        if 0 in sizes or sizes[0] % n_values:
            raise ValueError(f"the tensor {name!r} of type {label} has the sizes {sizes}")
        n_bytes *= math.prod(sizes) // n_values
        return name, GgufTensor(label, tuple(reversed(sizes)), offset, n_bytes)

    def require_apart(self, tensors: dict[str, GgufTensor]) -> None:
        """Checks that the values of all tensors are in the file, each in bytes of its own; raises ValueError if not."""
        end, before = 0, ""
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
            if tensor.start < end:
                raise ValueError(f"the tensors {before!r} and {name!r} share bytes")
            end, before = tensor.start + tensor.n_bytes, name
            if end > self.size:
                raise ValueError(f"{self.size:,} bytes instead of {end:,}, for the tensor {name!r}")


def _truth(content: bytes, key: str) -> list[bool]:
    if set(content) - {0, 1}:
        raise ValueError(f"{key} holds {max(content)} as true or false")
    return [byte == 1 for byte in content]
