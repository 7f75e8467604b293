"""What in a run's folder follows its checkpoints: its weights, and the link `best`."""

from collections.abc import Callable
from pathlib import Path

from lit_gpt.checkpoints.trained import BEST
from lit_gpt.errors import DiskError
from lit_gpt.files import links, replace_with
from lit_gpt.training.run.disk import going_on, reason


class Pointers:
    """The weights of a run, and its link `best`.

    Args:
        weights: file in the run's folder, named as in its checkpoints.
    """

    def __init__(self, weights: Path) -> None:
        self.weights, self.best = weights, weights.parent / BEST
        self.owes_weights = False
        """Whether the weights are not those of the latest checkpoint, since the disk was full."""

    def point_to(self, checkpoint: Path, best: Path | None, say: Callable[[str], None]) -> None:
        """Makes the weights those of a checkpoint, and points the link to the best one, if that is there.

        What a full disk prevents is said, and done after the next save.
        """
        failed: list[str] = []
        with going_on(str(self.weights), say, failed, f"its weights are in {checkpoint}"):
            self._take_weights(checkpoint)
        self.owes_weights = bool(failed)
        with going_on(f"the link {self.best}", say):
            if best is not None and best.is_dir():
                links.point(self.best, best)
            elif self.best.is_symlink() and not self.best.exists():  # the run went back to before that checkpoint
                self.best.unlink()

    def _take_weights(self, checkpoint: Path) -> None:
        """Makes the weights those of a checkpoint.

        Raises:
            DiskError: the disk is full or fails.
        """
        replace_with(self.weights, lambda path: links.link_or_copy(checkpoint / self.weights.name, path))

    def require_weights(self, checkpoint: Path) -> None:
        """Checks that the weights are those of a checkpoint, after trying once more.

        Raises:
            DiskError: the disk is full or fails.
        """
        if not self.owes_weights:
            return
        try:
            self._take_weights(checkpoint)
        except (DiskError, OSError) as e:
            raise DiskError(
                f"the trained weights {self.weights} could not be written ({reason(e)}); they are in {checkpoint}. "
                "Make room, and pass --resume true for what is left to do"
            ) from e
        self.owes_weights = False

    def is_best(self, checkpoint: Path) -> bool:
        """Returns whether the link points to this checkpoint."""
        return self.best.is_symlink() and self.best.resolve() == checkpoint.resolve()
