"""The checkpoints of a run: each complete or not there, verified when read, and enough to resume from.

out/<method>/<name>/checkpoints/step-000123/
  lit_model_..._finetuned.pth, finetuned.json    as the run's own: this folder can be given as --finetuned_path
  state.pth     the optimizer and the random generators
  state.json    where the run is, and the SHA-256 of every other file and of itself
out/<method>/<name>/best                         a link to the best checkpoint
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_gpt.args.folders import RUN
from lit_gpt.args.formats import with_format
from lit_gpt.checkpoints.trained import CHECKPOINTS, save_trained, trained_path
from lit_gpt.errors import UserError
from lit_gpt.files import Later, remove, replace_folder, require_room, save_state, temporary_beside
from lit_gpt.training.run.disk import going_on
from lit_gpt.training.run.pointers import Pointers
from lit_gpt.training.run.progress import (
    RECORD,
    STATE,
    OtherVersionError,
    Progress,
    file_digest,
    read_progress,
    record_digest,
)


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

    def write(
        self,
        weights: Mapping[str, Tensor | Later],
        state: dict[str, Any],
        progress: Progress,
        say: Callable[[str], None] = print,
    ) -> Path:
        """Writes a checkpoint, then removes those that are no longer kept; returns its folder.

        Args:
            weights: the trained ones, by name.
            state: the optimizer and the random generators, as `save_state` takes it.
            say: prints a line.

        Raises:
            DiskError: the disk is full or fails; what was there before stays.
        """
        checkpoint = self.folder_of(progress.step)

        def fill(folder: Path) -> None:
            save_trained(weights, folder / self.weights.name)
            save_state(state, folder / STATE)
            if (self.out_dir / RUN).is_file():
                shutil.copyfile(self.out_dir / RUN, folder / RUN)
            record = with_format(RECORD, asdict(progress))
            record |= {"files": {p.name: file_digest(p) for p in sorted(folder.iterdir())}}
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
            except OtherVersionError:  # as are the others
                raise
            except UserError as e:
                damaged.append(str(e))
                continue
            for message in damaged:
                say(f"{message}; taking the one before")
            return self.folder_of(step)
        if damaged:
            more = f", and {len(damaged) - 3} more are" if len(damaged) > 3 else ""
            listed = ", ".join(damaged[:3]).replace(f"{self.folder}/", "")
            raise UserError(
                f"{self.out_dir} has no checkpoint left to resume from: {listed}{more}; copy one back "
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
