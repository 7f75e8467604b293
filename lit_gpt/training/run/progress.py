"""Where a run is: the record in the state.json of a checkpoint, whose files are all verified when it is read."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor

from lit_gpt.args.formats import require_known, without_format
from lit_gpt.errors import UserError, shown
from lit_gpt.files import load_objects, load_state
from lit_gpt.records import is_file_name, read_object, require_types

STATE, RECORD = "state.pth", "state.json"
"""Files of a checkpoint beside its weights."""
_MONITOR: dict[str, Any] = dict.fromkeys(("iter", "samples", "n_tokens", "n_targets", "n_iterations", "n_rows"), int)
_MONITOR |= {"n_terms": int}
_MONITOR |= {"losses": list[Any], "seconds": float}
"""Types of the values of Progress.monitor."""


class DamagedError(UserError):
    """A checkpoint that lacks a file, or has one that is not what was written."""


class OtherVersionError(UserError):
    """A checkpoint is complete, and another version of the toolkit wrote it."""


@dataclass(frozen=True)
class Progress:
    """Where a run is, after an optimizer step."""

    step: int = 0
    """Optimizer steps taken."""
    samples: int = 0
    """Samples that these steps had: the position in the data."""
    seconds: float = 0.0
    """Seconds used by all processes of the run."""
    best_step: int | None = None
    """The step with the lowest validation loss, or the highest score, so far."""
    best: float | None = None
    """The best loss or score so far."""
    n_without_gain: int = 0
    """Validations since the best step."""
    validated_step: int | None = None
    """The step of the last validation."""
    validation_seconds: float = 0.0
    """Seconds of the last validation."""
    save_seconds: float = 0.0
    """Seconds of the last save."""
    finish_seconds: float = 0.0
    """Seconds of what follows the training."""
    step_seconds: float = 0.0
    """Seconds of a step; 0 where none was timed."""
    micro_batch_tokens: int | None = None
    """Tokens of a forward pass, if running out of memory made them fewer than the arguments say."""
    n_recomputed: int = 0
    """Blocks under activation checkpointing."""
    monitor: dict[str, Any] = field(default_factory=dict)
    """State of the monitor, as `Monitor.state` returns it."""
    stopped_by: str | None = None
    """The signal that ended the process, if one did."""
    figures: dict[str, float] = field(default_factory=dict)
    """Figures of the objective at the last validation."""
    first_figures: dict[str, float] = field(default_factory=dict)
    """Figures of the objective at the first validation."""

    def validated(
        self, loss: float, score: float | None = None, figures: Mapping[str, float] | None = None
    ) -> "Progress":
        """Returns the progress after a validation of this step; a loss that is not a number is no gain.

        Args:
            score: what counts instead of the loss; more is better.
            figures: figures of the objective.
        """
        latest = {name: value for name, value in (figures or {}).items() if math.isfinite(value)}
        noted = replace(self, figures=latest, first_figures=self.first_figures or latest, validated_step=self.step)
        found = loss if score is None else score
        gain = self.best is None or (found < self.best if score is None else found > self.best)
        if gain and found == found:
            return replace(noted, best_step=self.step, best=found, n_without_gain=0)
        return replace(noted, n_without_gain=self.n_without_gain + 1)


def read_progress(checkpoint: Path) -> Progress:
    """Returns the progress of a run from a checkpoint, after verifying all of its files.

    Raises:
        DamagedError: a file is missing or is not what was written.
        UserError: a later version wrote it.
    """
    try:
        record = read_object(checkpoint / RECORD, finite=False)
        _require_readable(record, checkpoint)
        if record.pop("digest") != record_digest(record):
            raise ValueError(f"{RECORD} is not what was written")
        for name, digest in record.pop("files").items():
            if not is_file_name(name):
                raise ValueError(f"{shown(name)} is no file's name")
            if file_digest(checkpoint / name) != digest:
                raise ValueError(f"{name} is not what was written")
    except OtherVersionError:
        raise
    except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        missing = Path(e.filename).name if isinstance(e, FileNotFoundError) and e.filename else None
        reason = f"there is no {missing}" if missing else str(e).replace(f"{checkpoint}/", "")
        raise DamagedError(f"the checkpoint {checkpoint} is damaged ({reason})") from e
    return _progress_of(record, checkpoint)


def _require_readable(record: Any, checkpoint: Path) -> None:
    """Checks that a checkpoint has no later format than this version reads, before anything else is made of it.

    Raises:
        UserError: it has.
    """
    try:
        without_format(checkpoint / RECORD, record)
    except UserError as e:
        raise OtherVersionError(f"{e}, or pass another --out_dir") from e


def position(checkpoint: Path | None) -> tuple[int, int]:
    """Returns the optimizer steps that a checkpoint is after, and their samples; (0, 0) without a checkpoint.

    Reads state.json only; `read_progress` verifies the other files, too.

    Raises:
        UserError: a later version wrote it.
    """
    if checkpoint is None:
        return 0, 0
    record = read_object(checkpoint / RECORD, finite=False)
    _require_readable(record, checkpoint)
    progress = _progress_of(
        {name: value for name, value in record.items() if name not in ("files", "digest")}, checkpoint
    )
    return progress.step, progress.samples


def _progress_of(record: dict[str, Any], checkpoint: Path) -> Progress:
    """Returns the progress in a record of this version or an earlier one, which may lack fields that came later.

    Raises:
        UserError: the record has a field that this version does not know.
    """
    record = without_format(checkpoint / RECORD, record)
    _require_values(record, checkpoint)
    try:
        require_known(checkpoint / RECORD, record, {f.name for f in fields(Progress)})
    except UserError as e:
        raise OtherVersionError(f"{e}, or pass another --out_dir") from e
    record.setdefault("samples", record.get("monitor", {}).get("samples", 0))  # older
    return Progress(**record)


def _require_values(record: dict[str, Any], checkpoint: Path) -> None:
    """Checks the types of a record's values; raises UserError if one is of another, or counts less than none."""
    where, remedy = str(checkpoint / RECORD), "pass an earlier checkpoint to --resume"
    kinds = {name: kind for name, kind in get_type_hints(Progress).items() if name != "best"}
    require_types(where, record, kinds, remedy)
    best, monitor = record.get("best"), record.get("monitor", {})  # losses may be infinite
    if not isinstance(best, int | float | None) or min(record.get("step", 0), record.get("samples", 0)) < 0:
        raise UserError(f"{where}: step, samples or best are impossible; {remedy}")
    require_types(f"{where} (monitor)", monitor, _MONITOR, remedy)
    losses = monitor.get("losses", [])  # each a number, or a list of the loss and the figures of an objective
    if not all(isinstance(x, int | float) for loss in losses for x in (loss if isinstance(loss, list) else [loss])):
        raise UserError(f"{where} (monitor): losses={shown(monitor['losses'])} are no numbers; {remedy}")


def read_state(checkpoint: Path, weights: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the trained weights of a checkpoint, and its state.pth.

    Raises:
        UserError: a file is missing or damaged.
    """
    trained = load_state(checkpoint / weights, "the finetune script")
    return trained, load_objects(checkpoint / STATE, "the finetune script")


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def record_digest(record: dict[str, Any]) -> str:
    """Returns the SHA-256 of a state.json without its own digest."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
