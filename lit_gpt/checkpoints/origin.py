"""What a run records of its base's files, by which a changed base is told from the one that it was trained on.

Weights are told apart by the checksums in their file, which cover all bytes and are read in milliseconds. The bytes
themselves are compared with the checksums only if the file was written or copied after the run recorded it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.checkpoints.layouts import read_config
from lit_gpt.config import Config
from lit_gpt.files.checksums import contents_of, intact

_NAMES = ("name", "hf_repo", "architecture", "padding_multiple")
"""Fields of a configuration that nothing is computed with."""


def origin_of(checkpoint_dir: Path) -> dict[str, Any]:
    """Returns what a run records of the files of its base: what they hold, and when the weights were written.

    Raises:
        UserError: no checkpoint, or a damaged one.
    """
    path = checkpoint_dir / WEIGHTS
    contents = contents_of(path)
    return {
        "contents": contents.digest,
        "layout": contents.layout,
        "modified_ns": path.stat().st_mtime_ns,
        "config": _computed_with(read_config(checkpoint_dir)),
    }


def _computed_with(config: Config) -> dict[str, Any]:
    """Returns the fields of a configuration that are not the default, as JSON has them, without names."""
    default = {f.name: f.default for f in fields(Config)}
    values = json.loads(json.dumps(asdict(config)))
    return {name: x for name, x in values.items() if name not in _NAMES and x != default[name]}


def changed_origin(now: dict[str, Any] | None, before: dict[str, Any] | None) -> dict[str, str]:
    """Returns what has changed in a base: name of what did -> a sentence that says how.

    Args:
        now, before: as `origin_of` returned them; None, of a run that recorded none, is not compared. Weights that
            were stored in another dtype or layout then are not compared here: a sample of their values is
            (`Run.base_digest`).
    """
    if not now or not before:
        return {}
    changes = {}
    if now["layout"] == before.get("layout") and now["contents"] != before.get("contents"):
        changes["base weights"] = f"{WEIGHTS} of the base has other weights than before"
    was, is_ = before.get("config") or {}, now["config"]
    default = {f.name: f.default for f in fields(Config)}
    for name in [name for name in default if was.get(name, default[name]) != is_.get(name, default[name])]:
        values = (repr(config.get(name, default[name])) for config in (was, is_))
        first, second = (text if len(text) <= 60 else f"{text[:60]}..." for text in values)
        changes[f"base {name}"] = f"{name} in {CONFIG} of the base was {first} and is {second}"
    return changes


@contextmanager
def reading_base(checkpoint_dir: Path, before: dict[str, Any] | None) -> Iterator[None]:
    """Compares the base's weights with their checksums, while the block reads them, if they were written since.

    Args:
        before: what a run recorded of the base; None compares nothing.

    Raises:
        UserError: at the end of the block, if the weights are damaged.
    """
    path = checkpoint_dir / WEIGHTS
    if before is None or not path.is_file() or path.stat().st_mtime_ns == before.get("modified_ns"):
        yield
        return
    with intact(path, f"python scripts/convert_hf_checkpoint.py --checkpoint_dir {checkpoint_dir}"):
        yield
