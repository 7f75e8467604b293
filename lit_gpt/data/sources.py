"""Rows out of somebody's file: fetch it, parse it, and name the place of whatever is wrong with it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError


@dataclass(frozen=True)
class Row:
    """One sample before tokenization."""

    instruction: str
    context: str
    """What the instruction refers to; may be empty."""
    response: str


def locate(data_file: Path | None, url: str, name: str, folder: Path) -> Path:
    """The file to read: `data_file`, or `folder / name`, downloaded from `url` if it is not there yet.

    Raises:
        UserError: no such file, or the download failed; nothing half-downloaded is left under the name.
    """
    if data_file is not None:
        if not data_file.is_file():
            raise UserError(f"there is no file {data_file}")
        return data_file
    path = folder / name
    if not path.is_file():
        download(url, path)
    return path


def download(url: str, path: Path) -> None:
    """Save what `url` answers as `path`, whole or not at all. Raises: UserError."""
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    print(f"Downloading {url}")
    try:
        with requests.get(url, stream=True, timeout=60) as answer, open(part, "wb") as file:
            answer.raise_for_status()
            if answer.headers.get("Content-Type", "").startswith("text/html"):
                raise UserError(f"{url} answers with a web page instead of data; pass the file with --data_file")
            for chunk in answer.iter_content(1 << 20):
                file.write(chunk)
            expected = answer.headers.get("Content-Length")
            if expected and "Content-Encoding" not in answer.headers and file.tell() != int(expected):
                raise UserError(f"{url} sent {file.tell():,} of {int(expected):,} bytes; try again")
        part.replace(path)
    except requests.RequestException as e:
        reason = f"HTTP {e.response.status_code}" if e.response is not None else type(e).__name__
        raise UserError(f"{url} could not be downloaded ({reason}); pass a local copy with --data_file") from e
    finally:
        part.unlink(missing_ok=True)


def read_alpaca(path: Path) -> list[Row]:
    """Rows of a JSON list or of JSON lines with Alpaca's keys: instruction, input (may be absent) and output.

    Raises:
        UserError: naming file, place and key of the first thing that is wrong.
    """
    rows = [parse_alpaca(value, f"{path}, {place}") for place, value in read_objects(path)]
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def parse_alpaca(value: Any, where: str) -> Row:
    """One row of Alpaca's schema. Raises: UserError naming `where` and the key."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with instruction, input and output, found {kind(value)}")
    for key in ("instruction", "output"):
        if key not in value:
            raise UserError(f"{where}: no key {key!r}; found {', '.join(map(repr, value)) or 'none'}")
    for key in ("instruction", "input", "output"):
        if not isinstance(value.get(key, ""), str):
            raise UserError(f"{where}: {key!r} must be text, found {kind(value[key])}")
    return Row(value["instruction"], value.get("input", ""), value["output"])


def read_objects(path: Path) -> list[tuple[str, Any]]:
    """(place, value) of every entry of a JSON list, or of every line of a JSON-lines file. Raises: UserError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        line = path.read_bytes()[: e.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: byte {e.object[e.start]:#04x} is not UTF-8; convert the file") from e
    if not text.strip():
        raise UserError(f"{path} is empty")
    if text.lstrip().startswith("["):
        try:
            return [(f"entry {i}", value) for i, value in enumerate(json.loads(text), 1)]
        except ValueError as e:
            raise UserError(f"{path} is not valid JSON: {e}") from e
    entries = []
    for i, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entries.append((f"line {i}", json.loads(line)))
            except ValueError as e:
                raise UserError(f"{path}, line {i}: not valid JSON ({e})") from e
    return entries


def kind(value: Any) -> str:
    """`value` as a person would name it."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value}")
