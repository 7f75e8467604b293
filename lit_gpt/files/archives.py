"""Finds the members of a zip archive that nothing is compressed in, such as torch writes, and checks that they fit.

What `zipfile` makes of an archive may take many times the archive's size, and it accepts members that share bytes.
"""

import struct
from pathlib import Path
from typing import IO, NamedTuple

_END, _LOCATOR, _END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_ENTRY, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
"""Structures of the format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7, 4.3.12 to 4.3.16."""
_LONGEST_COMMENT = 2**16
_MAX_TABLE = 16 * 2**20
"""Largest size of the table of contents, which has 80 to 200 bytes for each member, each with a tensor."""
_LARGE = 2**32 - 1
"""Value of a field that is too large for its 32 bits, and is in the member's zip64 field."""


class _Member(NamedTuple):
    """The place of a member's content in the archive."""

    start: int
    size: int


def members_of(path: Path) -> dict[str, _Member]:
    """Returns the place of each member of an archive, by name.

    Raises:
        ValueError: the archive is cut, a member is compressed or not within the archive, or two have a name or bytes
            in common.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        table_start, table_size = _table_of_contents(file, size)
        table = _read(file, table_start, table_size)
        found: list[tuple[int, str, _Member]] = []
        position = 0
        while position < table_size:
            name, offset, n_bytes, position = _entry(table, position)
            sign, *_, name_size, extra_size = _LOCAL.unpack(_read(file, offset, _LOCAL.size))
            if sign != b"PK\3\4":
                raise ValueError(f"its member {name[:80]!r} does not begin at byte {offset}")
            found.append((offset, name, _Member(offset + _LOCAL.size + name_size + extra_size, n_bytes)))
    found.sort()
    for (_, name, member), (after, *_) in zip(found, [*found[1:], (table_start, "", None)], strict=True):
        if member.start + member.size > after:
            raise ValueError(f"its member {name[:80]!r} reaches into the next one")
    members = {name: member for _, name, member in found}
    if len(members) < len(found):
        raise ValueError("two of its members have the same name")
    return members


def _table_of_contents(file: IO[bytes], size: int) -> tuple[int, int]:
    """Returns where the table of contents starts, and its size in bytes; raises ValueError if the file has none."""
    tail_start = max(0, size - _LONGEST_COMMENT - _END.size)
    tail = _read(file, tail_start, size - tail_start)
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    if at < 0:
        raise ValueError("its end is missing")
    _, _, _, _, _, table_size, table_start, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    if end >= _LOCATOR.size and (found := _read(file, end - _LOCATOR.size, _LOCATOR.size)).startswith(b"PK\6\7"):
        end = _LOCATOR.unpack(found)[2]
        sign, *_, table_size, table_start = _END_64.unpack(_read(file, end, _END_64.size))
        if sign != b"PK\6\6":
            raise ValueError("its end is damaged")
    if table_start + table_size > end:
        raise ValueError(f"its table of contents, {table_size:,} bytes, is not within it")
    if table_size > _MAX_TABLE:
        raise ValueError(f"its table of contents has {table_size:,} bytes, more than {_MAX_TABLE:,}")
    return table_start, table_size


def _entry(table: bytes, position: int) -> tuple[str, int, int, int]:
    """Returns name, offset and size of the member that is listed at a position of the table, and the next position."""
    if position + _ENTRY.size > len(table):
        raise ValueError("its table of contents is cut")
    sign, _, _, flags, method, _, _, _, packed, n_bytes, *lengths, _, _, _, offset = _ENTRY.unpack_from(table, position)
    name_size, extra_size, comment_size = lengths
    start = position + _ENTRY.size
    name = table[start : start + name_size].decode(errors="replace")
    extra = table[start + name_size : start + name_size + extra_size]
    if sign != b"PK\1\2":
        raise ValueError(f"its table of contents is damaged at byte {position}")
    large = _zip64(extra)
    sizes = []
    for value in (n_bytes, packed, offset):
        if value == _LARGE:
            if len(large) < 8:
                raise ValueError(f"its member {name[:80]!r} does not say how large it is")
            value, large = int.from_bytes(large[:8], "little"), large[8:]
        sizes.append(value)
    n_bytes, packed, offset = sizes
    if method or flags & 1 or packed != n_bytes:
        raise ValueError(f"its member {name[:80]!r} is compressed or encrypted")
    return name, offset, n_bytes, start + name_size + extra_size + comment_size


def _zip64(extra: bytes) -> bytes:
    """Returns the content of the zip64 field among a member's extra fields; empty if there is none."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        if kind == 1:
            return extra[4 : 4 + size]
        extra = extra[4 + size :]
    return b""


def _read(file: IO[bytes], start: int, size: int) -> bytes:
    """Returns exactly `size` bytes of a file; raises ValueError if it ends before."""
    file.seek(0, 2)
    if start + size > file.tell():
        raise ValueError(f"it has {file.tell():,} bytes, and {start + size:,} are needed")
    file.seek(start)
    return file.read(size)
