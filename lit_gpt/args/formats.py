"""The versions of the formats that this toolkit writes as JSON, and what is said of a file that a later one wrote."""

from pathlib import Path
from typing import Any

from lit_gpt import __version__
from lit_gpt.errors import UserError
from lit_gpt.records import read_object

FORMATS = {"lit_config.json": 1, "finetuned.json": 1, "merged.json": 1, "state.json": 1, "meta.json": 1}
"""Name of a file -> version of its format. It goes up where an older version of the toolkit would misread the file;
a key that an older version can do without does not raise it. Files of 0.1.0 do not say theirs, which is 1."""
_KEY = "format_version"


def with_format(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of a file with the version of its format in front."""
    return {_KEY: FORMATS[name], **record}


def read_record(path: Path, remedy: str, finite: bool = True) -> dict[str, Any]:
    """Returns what a file of ours holds, without the version of its format.

    Args:
        remedy: what the user can do about a damaged file, which completes the message.
        finite: whether to refuse NaN and infinite numbers.

    Raises:
        UserError: the file is damaged, or has a later format than this version reads.
    """
    return without_format(path, read_object(path, remedy, finite))


def without_format(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Returns what a file holds without the version of its format.

    Raises:
        UserError: the file has a later format than this version reads.
    """
    found, known = record.get(_KEY, 1), FORMATS.get(path.name, 1)
    if isinstance(found, int) and found > known:
        raise UserError(
            f"{path} has format {found}, and lit-gpt {__version__} reads up to {known}; use the version that wrote it, "
            "or a later one"
        )
    return {key: value for key, value in record.items() if key != _KEY}


def require_known(path: Path, record: dict[str, Any], known: set[str], written_by: str | None = None) -> None:
    """Checks that a file says nothing that this version does not know.

    Args:
        known: keys of the record.
        written_by: version of lit-gpt that wrote it, where the file says so.

    Raises:
        UserError: it does, and so another version wrote it.
    """
    if unknown := sorted(record.keys() - known):
        wrote = f"lit-gpt {written_by}" if written_by else "another version of lit-gpt"
        raise UserError(
            f"{path} was written by {wrote} and says {', '.join(unknown)}, which lit-gpt {__version__} does not know; "
            "use the version that wrote it"
        )
