"""What a run records of its base's files, by which a changed base is told from the one that it was trained on.

Weights that were written anew are told apart by the checksums in their file, which cover all bytes and are read in
milliseconds. Bytes that changed where they are, on a disk that fails or in a copy of such a file, leave the checksums
and often the time of the file as they were: whoever reads all weights compares the bytes, too (`require_undamaged`).
"""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.checkpoints.configs import read_config
from lit_gpt.config import Config
from lit_gpt.errors import UserError
from lit_gpt.files.checksums import contents_of, require_intact

_NAMES = ("name", "hf_repo", "architecture", "padding_multiple")
"""Fields of a configuration that nothing is computed with."""


def origin_of(checkpoint_dir: Path) -> dict[str, Any]:
    """Returns what a run records of the files of its base.

    Raises:
        UserError: no checkpoint, or a damaged one.
    """
    path = checkpoint_dir / WEIGHTS
    contents = contents_of(path)
    return {
        "contents": contents.digest,
        "layout": contents.layout,
        "config": _computed_with(read_config(checkpoint_dir)),
    }


def _computed_with(config: Config) -> dict[str, Any]:
    """Returns the fields of a configuration that are not the default, as JSON has them, without names."""
    default = {f.name: f.default for f in fields(Config)}
    values = json.loads(json.dumps(asdict(config)))
    return {name: x for name, x in values.items() if name not in _NAMES and x != default[name]}


def changed_origin(
    now: dict[str, Any] | None, before: dict[str, Any] | None, same_dtypes: bool = False
) -> dict[str, str]:
    """Returns what has changed in a base: name of what did -> a sentence that says how.

    Args:
        now, before: as `origin_of` returned them; None, of a run that recorded none, is not compared.
        same_dtypes: another dtype or another of Lit-GPT's layouts is a change, too. If it is none, weights that were
            stored in another way then are not compared here: a sample of their values is (`Run.base_digest`).
    """
    if not now or not before:
        return {}
    changes = {}
    if now["layout"] == before.get("layout") and now["contents"] != before.get("contents"):
        changes["base weights"] = f"{WEIGHTS} of the base has other weights than before"
    if same_dtypes and now["layout"] != before.get("layout"):
        changes["base weights"] = f"{WEIGHTS} of the base has its weights in another dtype or layout than before"
    was, is_ = before.get("config") or {}, now["config"]
    default = {f.name: f.default for f in fields(Config)}
    for name in [name for name in default if was.get(name, default[name]) != is_.get(name, default[name])]:
        values = (repr(config.get(name, default[name])) for config in (was, is_))
        first, second = (text if len(text) <= 60 else f"{text[:60]}..." for text in values)
        changes[f"base {name}"] = f"{name} in {CONFIG} of the base was {first} and is {second}"
    return changes


def is_other(digest: str, before: str) -> bool:
    """Returns whether a digest of a base's weights is that of others, by the samples of their values alone.

    Args:
        digest, before: as `load_base` or `digest_of` returned them, now and when a run began.
    """
    return digest.partition("-")[0] != before.partition("-")[0]


def require_undamaged(checkpoint_dir: Path, digest: str, before: str, origin: dict[str, Any] | None) -> None:
    """Checks that a base's weights are, byte for byte, those that a run began with, if its file says that they are.

    Args:
        digest: what `load_base` returned.
        before: what it returned when the run began.
        origin: what `origin_of` returned then; None, of a run that recorded nothing, compares nothing.

    Raises:
        UserError: they are not: the file is damaged, or was damaged when the run began.
    """
    now, then = digest.partition("-")[2], before.partition("-")[2]
    path = checkpoint_dir / WEIGHTS
    if now == then or not (now and then and origin) or contents_of(path).digest != origin.get("contents"):
        return
    require_intact(path, f"python scripts/convert_hf_checkpoint.py --checkpoint_dir {checkpoint_dir}")
    raise UserError(
        f"{path} is whole, and was damaged when the run began: the run was trained on weights that are gone; train it "
        "again"
    )
