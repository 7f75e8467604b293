"""Reads merged.json of a merged checkpoint: the prompt style, and the runs that are in the weights."""

import json
from pathlib import Path

from lit_gpt.args.formats import without_format
from lit_gpt.errors import UserError
from lit_gpt.prompts.wording import reworded, say

MERGED = "merged.json"


def trained_style(checkpoint_dir: Path) -> str | None:
    """Returns the prompt style that a merged checkpoint was trained with; None for a checkpoint that was not merged.

    Prints a note to stderr if the style's wording has changed since.

    Raises:
        UserError: the record is damaged.
    """
    record = _read_record(checkpoint_dir)
    if record.get("runs") and (message := reworded(record["runs"][-1].get("data", {}))):
        say(message)
    return record.get("prompt_style")


def merged_runs(checkpoint_dir: Path) -> list[dict]:
    """Returns the records of the runs that are merged into a checkpoint; an empty list if none is."""
    return _read_record(checkpoint_dir).get("runs", [])


def _read_record(checkpoint_dir: Path) -> dict:
    """Returns the record of a merged checkpoint, empty if there is none; raises UserError if it is damaged."""
    path = checkpoint_dir / MERGED
    if not path.is_file():
        return {}
    try:
        return without_format(path, json.loads(path.read_text(encoding="utf-8")))
    except ValueError as e:
        raise UserError(f"{path} is damaged ({e}); merge again") from e
