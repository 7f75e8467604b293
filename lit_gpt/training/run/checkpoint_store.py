"""The checkpoints of a run: each complete or not there, verified when read, and enough to resume from.

out/<method>/<name>/checkpoints/step-000123/
  lit_model_..._finetuned.pth, finetuned.json    as the run's own: this folder can be given as --finetuned_path
  state.pth     the optimizer and the random generators
  state.json    where the run is, and the SHA-256 of every other file and of itself
out/<method>/<name>/best                         a link to the best checkpoint
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor

from lit_gpt.args.folders import RUN
from lit_gpt.args.formats import require_known, with_format, without_format
from lit_gpt.checkpoints.trained import CHECKPOINTS, save_trained, trained_path
from lit_gpt.errors import UserError, shown
from lit_gpt.files import (
    load_objects,
    load_state,
    remove,
    replace_folder,
    require_room,
    save_state,
    temporary_beside,
)
from lit_gpt.model import GPT
from lit_gpt.records import is_file_name, read_object, require_types
from lit_gpt.training.run.disk import going_on
from lit_gpt.training.run.pointers import Pointers

_STATE, RECORD = "state.pth", "state.json"
_MONITOR: dict[str, Any] = dict.fromkeys(("iter", "samples", "n_tokens", "n_targets", "n_iterations", "n_rows"), int)
_MONITOR |= {"losses": list[Any], "seconds": float}
"""Types of the values of Progress.monitor."""


class DamagedError(UserError):
    """A checkpoint that lacks a file, or has one that is not what was written."""


class _OtherVersion(UserError):
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

    def validated(self, loss: float, score: float | None = None) -> "Progress":
        """Returns the progress after a validation of this step; a loss that is not a number is no gain.

        Args:
            score: what counts instead of the loss; more is better.
        """
        found = loss if score is None else score
        gain = self.best is None or (found < self.best if score is None else found > self.best)
        if gain and found == found:
            return replace(self, best_step=self.step, best=found, n_without_gain=0, validated_step=self.step)
        return replace(self, n_without_gain=self.n_without_gain + 1, validated_step=self.step)


class CheckpointStore:
    """The store of a run's checkpoints in `out_dir`: writes, finds and removes them.

    Args:
        method: key of METHODS; names the weights.
        keep_last: how many of the latest ones stay, besides the best.
    """

    def __init__(self, out_dir: Path, method: str, keep_last: int = 2) -> None:
        self.out_dir, self.keep_last = out_dir, keep_last
        self.weights = trained_path(out_dir, method)
        self.folder = out_dir / CHECKPOINTS
        self.pointers = Pointers(self.weights)

    def folder_of(self, step: int) -> Path:
        """Returns the folder of the checkpoint after a step."""
        return self.folder / f"step-{step:06d}"

    def own(self, checkpoint: Path) -> Path:
        """Returns the checkpoint that `checkpoint` is a copy of, if it is the run's `best` and no link.

        Raises:
            DamagedError: it is damaged.
        """
        best = self.pointers.best
        if checkpoint.resolve() != best.resolve() or best.is_symlink():
            return checkpoint
        return self.folder_of(read_progress(checkpoint).step)

    def steps(self) -> list[int]:
        """Returns the steps that have a complete checkpoint, in ascending order."""
        names = {path.name for path in self.folder.glob("step-*")}
        steps = (int(name[5:]) for name in names if name[5:].isdecimal() and len(name) < 24)
        return sorted(step for step in steps if self.folder_of(step).name in names)

    def write(self, model: GPT, state: dict[str, Any], progress: Progress, say: Callable[[str], None] = print) -> Path:
        """Writes a checkpoint, then removes those that are no longer kept; returns its folder.

        Args:
            state: the optimizer and the random generators, as `torch.save` with `weights_only` takes it.
            say: prints a line.

        Raises:
            DiskError: the disk is full or fails; what was there before stays.
        """
        checkpoint = self.folder_of(progress.step)

        def fill(folder: Path) -> None:
            save_trained(model, folder / self.weights.name)
            save_state(state, folder / _STATE)
            if (self.out_dir / RUN).is_file():
                shutil.copyfile(self.out_dir / RUN, folder / RUN)
            record = with_format(RECORD, asdict(progress))
            record |= {"files": {p.name: _file_digest(p) for p in sorted(folder.iterdir())}}
            text = json.dumps(record | {"digest": record_digest(record)}, indent=2)
            (folder / RECORD).write_text(text + "\n", encoding="utf-8")

        replace_folder(checkpoint, fill, overwrite=True)
        self.tidy(progress, say)
        return checkpoint

    def clear(self) -> None:
        """Removes what killed processes left of files that they were writing or removing, or puts it back."""
        for folder in (self.folder, self.out_dir):
            for path in folder.glob(".*.tmp"):
                target = path.name[1:].removesuffix(".tmp").removesuffix(".old").rpartition(".")[0]
                temporary_beside(folder / target)

    def require_room(self, n_bytes: int, later_bytes: int = 0) -> None:
        """Checks that the disk has room for the checkpoints that are kept, and one that is being written.

        Args:
            n_bytes: bytes of a checkpoint.
            later_bytes: bytes that are written after the training.

        Raises:
            DiskError: it has not.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clear()
        n_missing = max(1, self.keep_last + 2 - len(self.steps()))
        require_room(n_missing * n_bytes + later_bytes, self.folder)

    def tidy(self, progress: Progress, say: Callable[[str], None] = print) -> None:
        """Makes the run's weights those of this checkpoint, points `best` to the best one, and removes older ones.

        What a full disk prevents is said, and done after the next save; what a killed process did not get to, when the
        run is resumed.
        """
        best = None if progress.best_step is None else self.folder_of(progress.best_step)
        self.pointers.point_to(self.folder_of(progress.step), best, say)
        with going_on("the removal of older checkpoints", say):
            self._prune(progress)

    def require_weights(self, step: int) -> None:
        """Checks that the run's weights are those of the checkpoint after a step, after trying once more.

        Raises:
            DiskError: the disk is full or fails.
        """
        self.pointers.require_weights(self.folder_of(step))

    def _prune(self, progress: Progress) -> None:
        """Removes all but the latest checkpoints, the best one, and what `best` points to if that is another one."""
        kept = {*[step for step in self.steps() if step <= progress.step][-self.keep_last :], progress.best_step}
        for step in self.steps():
            folder = self.folder_of(step)
            if step not in kept and step <= progress.step and not self.pointers.is_best(folder):
                _remove(folder)

    def newest(self, say: Callable[[str], None] = print) -> Path | None:
        """Returns the latest checkpoint that is intact, None if there is none; says which later ones are damaged.

        Raises:
            UserError: all are damaged, or a later version of the toolkit wrote the latest that is intact.
        """
        self.clear()  # which may put one back
        damaged: list[str] = []
        for step in reversed(self.steps()):
            try:
                read_progress(self.folder_of(step))
            except _OtherVersion:  # as are the others
                raise
            except UserError as e:
                damaged.append(str(e))
                continue
            for message in damaged:
                say(f"{message}; taking the one before")
            return self.folder_of(step)
        if damaged:
            more = f", and {len(damaged) - 3} more are" if len(damaged) > 3 else ""
            raise UserError(
                f"{self.out_dir} has no checkpoint left to resume from: {', '.join(damaged[:3])}{more}; copy one back "
                f"into {self.folder} from a backup, or pass --overwrite true to train anew, which removes what is left"
            )
        return None

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, which the run will take again, perhaps differently."""
        for later in self.steps():
            if later > step:
                _remove(self.folder_of(later))


def _remove(checkpoint: Path) -> None:
    """Deletes a checkpoint such that at no time a part of it looks like a checkpoint."""
    doomed = temporary_beside(checkpoint)
    checkpoint.replace(doomed)
    remove(doomed)


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
            if _file_digest(checkpoint / name) != digest:
                raise ValueError(f"{name} is not what was written")
    except _OtherVersion:
        raise
    except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        reason = f"there is no {Path(e.filename).name}" if isinstance(e, FileNotFoundError) and e.filename else e
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
        raise _OtherVersion(f"{e}, or pass another --out_dir") from e


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
        raise _OtherVersion(f"{e}, or pass another --out_dir") from e
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
    if not all(isinstance(loss, int | float) for loss in monitor.get("losses", [])):
        raise UserError(f"{where} (monitor): losses={shown(monitor['losses'])} are no numbers; {remedy}")


def read_state(checkpoint: Path, weights: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the trained weights of a checkpoint, and its state.pth.

    Raises:
        UserError: a file is missing or damaged.
    """
    trained = load_state(checkpoint / weights, "the finetune script")
    return trained, load_objects(checkpoint / _STATE, "the finetune script")


def _file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def record_digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
