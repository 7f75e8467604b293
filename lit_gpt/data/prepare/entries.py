"""Reads the entries of a data file one by one, each with its location: JSON list, JSON lines or CSV, gzipped or not.

Only a part of the file is in memory at a time, and no entry may be longer than MAX_ENTRY.
"""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from itertools import chain
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError

MAX_ENTRY = 32 * 2**20
"""Most bytes of a line, and most characters of an entry of a JSON list."""
_SPACE, _NUMBER = re.compile(r"[ \t\n\r]*"), re.compile(r"[-+.0-9eE]*")
_NOT_TEXT = {b"PAR1": "a Parquet file", b"PK": "a zip archive", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_UNNAMED = re.compile(r"|Unnamed: \d+(\.\d+)*")
"""Names that pandas gives to a column without a name, when it writes and when it reads."""
_GZIP, _BOM = b"\x1f\x8b", b"\xef\xbb\xbf"


def read_objects(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (location, value) of every entry of a JSON list, or of every line of a JSON-lines file.

    Raises:
        UserError: an entry is not valid JSON, or the file is no JSON; it names the location, when that is reached.
    """
    with opened(path) as file:
        start = _first_character(file, path)
        if start == b"<":
            raise UserError(f"{path}: expected JSON, found a web page or XML (it begins with '<'); get the file again")
        yield from list_entries(Text(path, file)) if start == b"[" else _line_entries(path, file)


def read_table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (location, values by column) of every row of a CSV file with a header.

    Cells are separated by comma, semicolon or tab: whichever is most frequent in the header.

    Raises:
        UserError: a row is not valid CSV or does not match the header; it names the line, when that is reached.
    """
    with opened(path) as file:
        lines = (text for _, text in decoded_lines(path, file))
        first = next(lines, "")
        if not first.strip():
            raise UserError(f"{path}: expected a header with the names of the columns, found an empty line")
        if first.lstrip().startswith("<"):
            raise UserError(f"{path}: expected CSV, found a web page or XML (it begins with '<'); get the file again")
        rows = table_rows(path, chain([first], lines), delimiter=max(",;\t", key=first.count))
        names = next(rows)[1]
        n_index = _index_columns(names)
        header = _unique(names[n_index:], path)
        for line, cells in rows:
            row = _without_index(cells, n_index, f"{path}, line {line}")
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {line}: expected {len(names)} columns ({', '.join(names)}), found {len(cells)}; "
                    "a text with a separator or a line break in it stands in double quotes"
                )
            yield f"line {line}", dict(zip(header, row, strict=True))


def table_rows(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (line that it begins on, cells) of each row that is not empty; raises UserError for invalid CSV."""
    csv.field_size_limit(MAX_ENTRY)
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in table:
            if row:
                yield line, row
            line = table.line_num + 1
    except csv.Error as e:
        raise UserError(f"{path}, line {line}: a row begins that is not valid CSV ({e})") from e


def _index_columns(header: list[str]) -> int:
    """Counts the leading columns without a name, or with the one that pandas gives to those: they hold row numbers."""
    return next((i for i, name in enumerate(header) if not _UNNAMED.fullmatch(name.strip())), 0)


def _without_index(cells: list[str], n: int, where: str) -> list[str]:
    """Returns the cells after the first n; raises UserError if those hold anything but row numbers."""
    for cell in cells[:n]:
        if not cell.strip().isdecimal():
            raise UserError(f"{where}: the first column has no name in the header, and holds {cell[:40]!r}; name it")
    return cells[n:]


def _unique(header: list[str], path: Path) -> list[str]:
    """Returns the header as it is; raises UserError if a column has no name, or two have the same."""
    for name in header:
        if not name.strip() or header.count(name) > 1:
            raise UserError(f"{path}, line 1: expected a name of its own for each column, found {name!r} in {header}")
    return header


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """Opens a text file as bytes, decompressed if need be, past its byte order mark.

    Raises:
        UserError: there is no such file, it is damaged, or it is no text.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with open(path, "rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if start.startswith(_GZIP) else raw
        try:
            start = file.read(4)
            for mark, kind in _NOT_TEXT.items():
                if start.startswith(mark):
                    raise UserError(f"{path}: expected UTF-8 text, found {kind}; convert the file")
            file.seek(len(_BOM) if start.startswith(_BOM) else 0)
            yield file
        except (EOFError, gzip.BadGzipFile, zlib.error) as e:
            raise UserError(f"{path} is damaged or cut: {e}; get the file again") from e


def _past(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Returns where the match of a pattern at position `at` of a text ends; `at` if there is none."""
    match = pattern.match(text, at)
    return match.end() if match else at


def _first_character(file: BufferedIOBase, path: Path) -> bytes:
    """Returns the first byte that is not whitespace and rewinds the file; raises UserError if there is none."""
    at, c = file.tell(), b" "
    while c and c.isspace():
        c = file.read(1)
    if not c:
        raise UserError(f"{path} is empty")
    file.seek(at)
    return c


def decoded_lines(path: Path, file: BufferedIOBase) -> Iterator[tuple[int, str]]:
    """Yields (number, text with its line break) of each line; raises UserError if one is too long or not UTF-8."""
    number = 0
    while line := file.readline(MAX_ENTRY + 1):
        number += 1
        if len(line) > MAX_ENTRY:
            raise UserError(f"{path}, line {number}: longer than {MAX_ENTRY:,} bytes, expected one row a line")
        yield number, _decoded(line, path, number)


def _decoded(line: bytes, path: Path, number: int) -> str:
    """Returns the text of a line; raises UserError if it is not UTF-8, or has a zero byte."""
    if b"\0" in line:
        raise UserError(f"{path}, line {number}: byte {line.index(0) + 1} is zero, expected text; get the file again")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}, line {number}: byte {line[e.start]:#04x} is not UTF-8; convert the file") from e


def _line_entries(path: Path, file: BufferedIOBase) -> Iterator[tuple[str, Any]]:
    """Yields (location, value) of each line of a JSON-lines file that is not empty."""
    for number, line in decoded_lines(path, file):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except json.JSONDecodeError as e:
            hint = ""
            if line.strip() == "{":
                hint = "; expected a list [...], or one object a line, found an object over several lines"
            elif not line.endswith("\n"):
                hint = "; it is the last line: is the file cut?"
            raise UserError(f"{path}, line {number}: not valid JSON ({e.msg} at column {e.colno}){hint}") from e
        except RecursionError as e:
            raise UserError(f"{path}, line {number}: lists or objects nested too deep") from e
        except ValueError as e:
            raise UserError(f"{path}, line {number}: a number of too many digits, expected text") from e


class Text:
    """A cursor on the text of a file that keeps only the part being parsed in memory."""

    def __init__(self, path: Path, file: BufferedIOBase) -> None:
        self.path, self.file = path, file
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.at, self.line, self.ended = "", 0, 1, False

    def more(self) -> bool:
        """Reads more text, as much again as is not parsed yet, and returns whether there was any."""
        if self.ended:
            return False
        rest = self.buffer[self.at :]
        raw = self.file.read(max(1 << 20, len(rest)))
        self.ended = not raw
        try:
            if b"\0" in raw:
                raise UserError(f"{self.path}, line {self.line_of(rest, raw, raw.index(0))}: found a zero byte")
            text = self.decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as e:
            line = self.line_of(rest, raw, max(0, len(raw) - len(e.object) + e.start))
            byte = e.object[e.start]
            raise UserError(f"{self.path}, line {line}: byte {byte:#04x} is not UTF-8; convert the file") from e
        if not self.ended:
            self.buffer, self.at = rest + text, 0
        return not self.ended

    def line_of(self, rest: str, raw: bytes, index: int) -> int:
        """Returns the line number of byte `index` of what was just read, `raw`, which follows the text `rest`."""
        return self.line + rest.count("\n") + raw[:index].count(b"\n")

    def move(self, to: int) -> None:
        """Moves the cursor to a position in the buffer, and counts lines on the way."""
        self.line += self.buffer.count("\n", self.at, to)
        self.at = to

    def peek(self) -> str:
        """Moves past whitespace and returns the next character; empty at the end of the file."""
        while True:
            self.move(_past(_SPACE, self.buffer, self.at))
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self.more():
                return ""

    def value(self, location: str) -> Any:
        """Parses the JSON value at the cursor and moves past it; raises UserError if it is not valid."""
        decode = json.JSONDecoder().raw_decode
        while True:
            try:
                value, end = decode(self.buffer, self.at)
                # a number that ends where the buffer does may have more digits in the file
                if _past(_NUMBER, self.buffer, self.at) < len(self.buffer) or not self.more():
                    self.move(end)
                    return value
            except json.JSONDecodeError as e:
                unfinished = e.pos > len(self.buffer) - 12 or e.msg.startswith("Unterminated")
                if unfinished and len(self.buffer) - self.at > MAX_ENTRY:
                    message = f"{location} (line {self.line}) is longer than {MAX_ENTRY:,} characters"
                    raise UserError(f"{self.path}, {message}") from e
                if not (unfinished and self.more()):
                    self.fail(location, e)
            except RecursionError as e:
                raise UserError(f"{self.path}, {location}: lists or objects nested too deep") from e
            except ValueError as e:
                raise UserError(f"{self.path}, {location}: a number of too many digits, expected text") from e

    def fail(self, location: str, e: json.JSONDecodeError) -> None:
        """Raises UserError for what the parser found, with a hint where the file seems to be truncated."""
        self.move(e.pos)
        cut = "; the file ends here: is the file cut?" if self.ended and e.pos > len(self.buffer) - 12 else ""
        cut = "; a text begins here that never ends: is the file cut?" if e.msg.startswith("Unterminated") else cut
        raise UserError(f"{self.path}, {location} (line {self.line}): not valid JSON ({e.msg}){cut}") from e


def list_entries(text: Text) -> Iterator[tuple[str, Any]]:
    """Yields (location, value) of each entry of a JSON list."""
    text.peek()
    text.move(text.at + 1)  # past the opening bracket
    i, after = 0, text.peek()
    while after != "]":
        i += 1
        text.peek()
        line = text.line
        yield f"entry {i} (line {line})", text.value(f"entry {i}")
        after = text.peek()
        if after not in ("]", ","):
            found = repr(after) if after else "the end of the file: is it cut?"
            raise UserError(
                f"{text.path}, line {text.line}: not valid JSON (expected ',' or ']' after entry {i}, found {found})"
            )
        if after == ",":
            text.move(text.at + 1)
    text.move(text.at + 1)
    if text.peek():
        raise UserError(f"{text.path}, line {text.line}: not valid JSON (expected nothing after the list)")
