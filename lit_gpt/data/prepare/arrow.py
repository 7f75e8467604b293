"""Entries that Arrow's files hold: Parquet, folders of `datasets.save_to_disk`, data sets of the hub.

They are read batch by batch, so that the memory does not grow with them. Decoding of pictures and sound is left out.
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
PARQUET = ".parquet"
_SAVED, _SPLITS = "state.json", "dataset_dict.json"
"""What says that a folder holds a data set, or one a split."""
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
"""What the library says -> what to do."""


def holds_rows(folder: Path) -> bool:
    """Whether the folder is one of `save_to_disk`, or holds Parquet files."""
    return (folder / _SAVED).is_file() or (folder / _SPLITS).is_file() or any(folder.glob(f"*{PARQUET}"))


def read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, entry) of each row of a Parquet file. Raises: UserError if it is damaged, or not there."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with _one_line_errors(str(path)):
        from datasets import load_dataset

        files = {"train": str(path.absolute())}
        yield from _rows(load_dataset("parquet", data_files=files, split="train", streaming=True))


def read_folder(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, entry) of each row of a folder of `save_to_disk`, or of the Parquet files of one split.

    Raises:
        UserError: it holds several splits, or is no such folder, or is damaged.
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
    """The rows of a split of a data set of the hub, as a file of JSON lines in `folder`, whole or not at all.

    What was fetched before is not fetched again. A private or gated data set needs HF_TOKEN.

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
    """(place, entry) of each row of a data set of `datasets`."""
    number = 0
    for table in data.with_format("arrow").iter(batch_size=_BATCH):
        kinds = {field.name: field.type for field in table.schema}
        for entry in table.to_pylist():
            number += 1
            yield f"row {number}", _without_nulls(entry, kinds)


def _without_nulls(entry: dict[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """An object without the keys that are null: Arrow gives each all keys that one of the others has."""
    return {key: _plain(value, kinds[key]) for key, value in entry.items() if value is not None}


def _plain(value: Any, kind: Any) -> Any:
    """A value of Arrow as it was before Arrow took it in.

    What is of one type here and of another there, `datasets` keeps as JSON, but texts that are JSON themselves, such
    as 29 and true, as they are: those stay texts.
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
    with open(path, "w", encoding="utf-8") as file:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False, default=_shown) + "\n")


def _shown(value: Any) -> str:
    """What JSON cannot write: bytes by their number, dates and the like as text."""
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else str(value)


@contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    """Say in one line what `datasets` and what it stands on raise: the library, the network and the files have each
    their own kinds of errors.

    Raises:
        UserError: always in their place.
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
