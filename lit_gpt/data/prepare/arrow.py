"""Reads the entries of Arrow data: Parquet files, folders of `datasets.save_to_disk`, data sets of the hub.

They are read batch by batch, so that memory does not grow with them. Images and audio are not decoded.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.files.whole import replace_with

_BATCH = 1000
"""Number of rows that are read at once."""
PARQUET = ".parquet"
_SAVED, _SPLITS = "state.json", "dataset_dict.json"
"""Files that mark a folder as a saved data set, and as one with a folder for each split."""
_NO_SUCH = "; there is none of this name, or it is private and needs HF_TOKEN"
_WAYS = {
    "Bad split": "; pass another --split",
    "Unknown split": "; pass another --split",
    "Config name is missing": "; pass one with --dataset_config",
    "BuilderConfig": "; pass one with --dataset_config",
    "is a gated dataset": "; ask for access on its page, and set HF_TOKEN",
    "401": _NO_SUCH,
    "404": _NO_SUCH,
    "doesn't exist on the Hub": _NO_SUCH,
}
"""Part of an error message of `datasets` -> advice to append."""


def holds_rows(folder: Path) -> bool:
    """Returns whether the folder was written by `save_to_disk` or holds Parquet files."""
    return (folder / _SAVED).is_file() or (folder / _SPLITS).is_file() or any(folder.glob(f"*{PARQUET}"))


def read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (location, entry) of each row of a Parquet file; raises UserError if it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with _one_line_errors(str(path)):
        from datasets import load_dataset

        files = {"train": str(path.absolute())}
        yield from _rows(load_dataset("parquet", data_files=files, split="train", streaming=True))


def read_folder(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (location, entry) of each row of a folder of `save_to_disk`, or of the Parquet files of one split.

    Raises:
        UserError: the folder is neither, holds several splits, or is damaged.
    """
    if not (folder / _SAVED).is_file() and (paths := sorted(folder.glob(f"*{PARQUET}"))):
        names = sorted({re.split(r"-\d", path.stem)[0] for path in paths})  # train-00000-of-00002.parquet
        if len(names) > 1:
            raise UserError(
                f"{folder} holds Parquet files of {', '.join(names)}; pass one file, or a folder of one split"
            )
        for path in paths:
            yield from ((f"{path.name}, {location}", entry) for location, entry in read_parquet(path))
        return
    if (folder / _SPLITS).is_file():
        names = sorted(path.parent.name for path in folder.glob(f"*/{_SAVED}"))
        if len(names) != 1:
            raise UserError(f"{folder} holds the splits {', '.join(names) or 'none'}; pass the folder of one of them")
        folder = folder / names[0]
    if not (folder / _SAVED).is_file():
        raise UserError(f"{folder} is a folder without Parquet files, and none of datasets.save_to_disk; pass a file")
    with _one_line_errors(str(folder)):
        from datasets import load_from_disk

        yield from _rows(load_from_disk(str(folder)))


def fetched_dataset(name: str, config: str | None, split: str, folder: Path) -> Path:
    """Downloads a split of a data set of the Hugging Face Hub as a JSON-lines file in `folder` and returns its path.

    The file is written whole or not at all, and one from an earlier download is used again. A private or gated data
    set needs HF_TOKEN.

    Raises:
        UserError: the hub has no such data set, configuration or split, or it cannot be read.
    """
    path = folder / f"{'.'.join(filter(None, (name.replace('/', '__'), config, split.replace('/', '_'))))}.jsonl"
    if path.is_file():
        print(f"{path} was fetched before")
        return path
    print(f"Fetching {name} ({split}) to {path}")
    with _one_line_errors(f"--dataset {name}"):
        from datasets import load_dataset

        rows = load_dataset(name, config, split=split, streaming=True)
        folder.mkdir(parents=True, exist_ok=True)
        replace_with(path, lambda temporary: _write_lines(temporary, (entry for _, entry in _rows(rows))))
    return path


def _rows(data: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (location, entry) of each row of a `datasets` data set."""
    number = 0
    for table in data.with_format("arrow").iter(batch_size=_BATCH):
        kinds = {field.name: field.type for field in table.schema}
        for entry in table.to_pylist():
            number += 1
            yield f"row {number}", _without_nulls(entry, kinds)


def _without_nulls(entry: dict[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an object without its null keys: Arrow gives each object the keys of all others, filled with nulls."""
    return {key: _plain(value, kinds[key]) for key, value in entry.items() if value is not None}


def _plain(value: Any, kind: Any) -> Any:
    """Returns an Arrow value as it was before it was converted to Arrow.

    `datasets` stores a column of mixed types as JSON, but leaves texts that are JSON themselves, such as 29 and true,
    as they are: those stay texts.
    """
    import pyarrow

    if value is None:
        return None
    if isinstance(kind, getattr(pyarrow, "JsonType", ())):
        found = json.loads(value)
        return found if isinstance(found, dict | list | str) else value
    if pyarrow.types.is_struct(kind):
        return _without_nulls(value, {field.name: field.type for field in kind})
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_plain(inner, kind.value_type) for inner in value]
    return value


def _write_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Writes entries as JSON lines."""
    with open(path, "w", encoding="utf-8") as file:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False, default=_shown) + "\n")


def _shown(value: Any) -> str:
    """Returns a text for a value that JSON cannot hold: bytes by their number, dates and the like as text."""
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else str(value)


@contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    """Turns whatever `datasets` and its dependencies raise within the block into a one-line UserError.

    The library, the network and the files each raise exceptions of their own kinds, so all are caught.

    Raises:
        UserError: the block raised, or `datasets` is not installed.
    """
    try:
        import datasets

        datasets.disable_progress_bars()
    except ImportError as e:
        raise UserError(f"{what} is read with the library datasets; pip install 'lit-gpt[datasets]'") from e
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        reason = " ".join(str(e).split()) or type(e).__name__
        advice = next((way for sign, way in _WAYS.items() if sign in reason), "")
        reason = reason.split(" Example of usage")[0].split(" For more information")[0]
        raise UserError(f"{what} could not be read ({reason[:300]}){advice}") from e
