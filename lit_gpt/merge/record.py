"""Reads merged.json of a merged checkpoint: the prompt style, and the runs that are in the weights."""

from pathlib import Path
from typing import Any

from lit_gpt.args.formats import read_record
from lit_gpt.prompts.wording import reworded, say
from lit_gpt.records import require_types

MERGED = "merged.json"
_KINDS = {"prompt_style": str | None, "runs": list[dict[str, Any]]}
"""Types of the values."""


def trained_style(checkpoint_dir: Path) -> str | None:
    """Returns the prompt style that a merged checkpoint was trained with; None for a checkpoint that was not merged.

    Prints a note to stderr if the style's wording has changed since.

    Raises:
        UserError: the record is damaged.
    """
    record = _read_record(checkpoint_dir)
    if record.get("runs") and (message := reworded(record["runs"][-1].get("data"))):
        say(message)
    return record.get("prompt_style")


def merged_runs(checkpoint_dir: Path) -> list[dict]:
    """Returns the records of the runs that are merged into a checkpoint; an empty list if none is."""
    return _read_record(checkpoint_dir).get("runs", [])


def origin_of_text(checkpoint_dir: Path, given: Path | None) -> Path:
    """Returns the folder that has the other parts of a multimodal model whose text a checkpoint is.

    Args:
        given: what the user says; None takes the base of the last run that was merged, or the checkpoint's own folder.
    """
    bases = [Path(run["base"]) for run in merged_runs(checkpoint_dir) if isinstance(run.get("base"), str)]
    return given or (bases[-1] if bases else checkpoint_dir)


def _read_record(checkpoint_dir: Path) -> dict:
    """Returns the record of a merged checkpoint, empty if there is none; raises UserError if it is damaged."""
    path = checkpoint_dir / MERGED
    if not path.is_file():
        return {}
    record = read_record(path, "merge again")
    require_types(str(path), record, _KINDS, "merge again")
    return record
