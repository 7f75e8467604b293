"""What follows the training: loss curve, report, merged weights, mean of the last checkpoints. Each can be repeated.

A run with a time limit does all of it once before the first step and deletes the result, to know how long it takes.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.args.folders import WEIGHTS
from lit_gpt.checkpoints.runs import Run
from lit_gpt.checkpoints.trained import BEST
from lit_gpt.data.store import Samples
from lit_gpt.errors import DiskError, UserError
from lit_gpt.files import load_state, temporary_beside
from lit_gpt.lightning import Fabric
from lit_gpt.merge.write import write_merged
from lit_gpt.model import GPT
from lit_gpt.parallel.shards import is_sharded
from lit_gpt.report.page import REPORT, write_report
from lit_gpt.resources import peak_memory_gb
from lit_gpt.training.loss import NEXT_TOKEN, Objective
from lit_gpt.training.run.average import AVERAGED, save_average, write_mean
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.disk import going_on
from lit_gpt.training.run.folder import MERGED
from lit_gpt.training.run.metrics import METRICS
from lit_gpt.training.run.monitor import CURVE, plot_losses
from lit_gpt.training.run.progress import Progress
from lit_gpt.training.validation import means

_REHEARSAL = "rehearsal"
_NO_MORE = "all else is written first"


@dataclass(frozen=True)
class Ending:
    """The end of a run."""

    fabric: Fabric
    model: GPT
    val_data: Samples
    args: FinetuneArgs
    checkpoint_store: CheckpointStore
    run: Run
    objective: Objective = NEXT_TOKEN

    @property
    def n_bytes(self) -> int:
        """Approximate bytes that `finish` writes."""
        merged = (self.args.checkpoint_dir / WEIGHTS).stat().st_size if self.args.merge else 0
        trained = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        return merged + (trained if self.args.train.average_last else 0)

    def rehearse(self, checkpoint: Path) -> None:
        """Does what `finish` does, with a checkpoint, and leaves nothing behind; the mean is not validated."""
        aside = temporary_beside(self.args.out_dir / _REHEARSAL)
        aside.mkdir()
        try:
            plot_losses(self.args.out_dir / METRICS, aside / CURVE)
            write_report(self.args.out_dir, aside / REPORT)
            if self.args.merge:
                self.merge(checkpoint, aside / MERGED)
            if self.args.train.average_last:
                write_mean([checkpoint] * self.args.train.average_last, self.checkpoint_store, aside / AVERAGED)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def finish(self, progress: Progress) -> None:
        """Writes curve, report, merged weights and mean; says what the training took and where its results are.

        What a full disk prevents is said, and the rest is written.

        Raises:
            UserError: the run cannot be merged.
            DiskError: the merged weights or the mean could not be written.
        """
        out_dir, weights = self.args.out_dir, self.checkpoint_store.weights
        unwritten: list[str] = []
        print(f"Training time: {progress.monitor['seconds']:.2f}s")
        print(f"Memory used: {peak_memory_gb():.02f} GB")
        curve = ""
        with going_on("the loss curve", then="python scripts/write_report.py writes it, too"):
            curve = f", the loss curve to {plot_losses(out_dir / METRICS, out_dir / CURVE)}"
        print(f"Saved the trained weights to {weights}{curve}")
        if progress.best_step is not None:
            self.say_best(progress.best_step, progress.step)
        report = None
        with going_on("the report", then="python scripts/write_report.py writes it, too"):
            report = write_report(out_dir)
        if report is not None:
            print(f"Saved a report to {report}")
        if self.args.merge:
            message: list[str] | None = None
            with going_on(f"the merged checkpoint {out_dir / MERGED}", failed=unwritten, then=_NO_MORE):
                message = self.merge(out_dir, out_dir / MERGED)
            if message is not None:
                print(f"Saved the merged checkpoint to {out_dir / MERGED}", *message, sep="\n")
        if self.args.train.average_last:
            with going_on(f"the mean of the last checkpoints {out_dir / AVERAGED}", failed=unwritten, then=_NO_MORE):
                self.average()
        if unwritten:
            raise DiskError(
                f"the trained weights are in {weights}, but {' and '.join(unwritten)} could not be written; make room, "
                "and the same command with --resume true writes what is missing"
            )

    def say_best(self, step: int, last: int) -> None:
        """Says which checkpoint is the best one, if it is not the last, or that the disk was too full for it."""
        best = self.args.out_dir / BEST
        if self.checkpoint_store.folder_of(step).is_dir():
            if step != last:
                print(f"The best checkpoint is that of step {step:,}; its weights: {best}")
            return
        is_there = (best / self.checkpoint_store.weights.name).is_file()
        instead = f"; {best} is the best of those that were" if is_there else ""
        print(f"The best weights were those of step {step:,}, which could not be saved{instead}")

    def merge(self, checkpoint: Path, folder: Path) -> list[str]:
        """Writes the merged weights of a checkpoint; returns lines that say which chat template goes along."""
        return write_merged(self.args.checkpoint_dir, checkpoint, self.run, folder, overwrite=True)

    def average(self) -> None:
        """Saves the mean of the last checkpoints, loads it into the model, and says its validation loss."""
        try:
            folder, steps = save_average(self.checkpoint_store, self.args.train.average_last)
        except DiskError:
            raise
        except UserError as e:  # a run that its deadline ended early has all else that was asked for
            print(f"There is no mean: {e}")
            return
        if is_sharded(self.model):
            print(f"Mean of the checkpoints of steps {', '.join(map(str, steps))}; its weights: {folder}")
            return
        self.model.load_state_dict(
            load_state(folder / self.checkpoint_store.weights.name, "the finetune script"), strict=False
        )
        args = self.args
        found = means(
            self.fabric,
            self.model,
            self.val_data,
            train=args.train,
            validation=args.validation,
            objective=self.objective,
        )
        assert found is not None
        loss = found[0]
        print(
            f"Mean of the checkpoints of steps {', '.join(map(str, steps))}: val loss {loss:.4f}; its weights: {folder}"
        )
