"""Reads rows from a file of any known format and schema, one after the other."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.data.prepare.arrow import PARQUET, read_folder, read_parquet
from lit_gpt.data.prepare.columns import by_columns
from lit_gpt.data.prepare.entries import read_objects, read_table
from lit_gpt.data.prepare.rows import Row, RowError
from lit_gpt.data.prepare.schemas import Keys, Parse, alpaca, recognize
from lit_gpt.errors import UserError

_TABLES = (".csv", ".tsv")


def read_rows(
    path: Path, parse: Parse | None = None, columns: Mapping[str, str] | Sequence[str] | None = None
) -> Iterator[Row]:
    """Yields the rows of a file (JSON list, JSON lines, CSV or Parquet) or of a folder of `datasets.save_to_disk`.

    Args:
        parse: the schema of its entries; None recognizes it by the keys of the first one.
        columns: names of the user's own columns or keys; see `by_columns`.

    Raises:
        UserError: an entry is not of the schema, naming file, location and key when it is reached; or there are no
            rows at all.
    """
    found = False
    for rows in read_entries(path, by_columns(columns) if columns else parse):
        assert not isinstance(rows, UserError)  # it is raised where nothing is dropped
        found = True
        yield from rows
    if not found:
        raise UserError(f"{path} has no rows")


def read_entries(path: Path, parse: Parse | None, drop: bool = False) -> Iterator[list[Row] | UserError]:
    """Yields the rows of each entry; with `drop`, a bad entry yields its error, else it raises UserError.

    An entry whose error is harmless yields it in any case.
    """
    for n, (location, entry) in enumerate(entries(path)):
        parse = parse or recognize(entry, f"{path}, {location}")
        if n == 0 and isinstance(parse, Keys) and _is_table(path):
            parse.require_columns(entry, path)
        try:
            rows = parse(entry, str(path), location)
        except UserError as e:
            if not (drop or (isinstance(e, RowError) and e.harmless)):
                raise UserError(f"{e}; mend it, or leave such rows out with --bad_rows drop") from e
            rows = e
        yield rows


def entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (location, value) of each entry of a file or folder."""
    if path.is_dir():
        return read_folder(path)
    if path.name.endswith(PARQUET):
        return read_parquet(path)
    return read_table(path) if _is_table(path) else read_objects(path)


def _is_table(path: Path) -> bool:
    """Returns whether the file's name says that it is CSV."""
    return path.name.removesuffix(".gz").endswith(_TABLES)


def read_alpaca(path: Path) -> list[Row]:
    """Returns the rows of a file of Alpaca's schema; raises UserError if an entry is not of it."""
    return list(read_rows(path, alpaca))
