"""Saves the whole state of a run as checkpoints when they are due, and resumes from one."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_gpt.checkpoints.trained import check_fit, save_trained
from lit_gpt.errors import DiskError, UserError
from lit_gpt.files import Later
from lit_gpt.lightning import Fabric, FabricOptimizer
from lit_gpt.methods import trained_parameters
from lit_gpt.model import GPT
from lit_gpt.parallel.parts import Parts, state_later, weights_later
from lit_gpt.parallel.shards import load_weights_here, reshard, state_here
from lit_gpt.resources import is_out_of_memory
from lit_gpt.training.loader import BatchLoader
from lit_gpt.training.memory import checkpoint_bytes
from lit_gpt.training.randomness import random_states, set_random_states
from lit_gpt.training.run.disk import going_on, reason
from lit_gpt.training.run.progress import Progress, read_progress, read_state
from lit_gpt.training.run.session import Session


class Checkpointer:
    """Saves a run when that is due, and resumes it.

    Args:
        save_interval: optimizer steps between checkpoints.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: GPT,
        optimizer: FabricOptimizer,
        loader: BatchLoader,
        session: Session,
        save_interval: int,
    ) -> None:
        self.fabric, self.model, self.optimizer = fabric, model, optimizer.optimizer
        self.loader, self.checkpoint_store = loader, session.checkpoint_store
        self.monitor, self.budget, self.team = session.monitor, session.budget, session.team
        self.checkpoint, self.later_bytes, self.save_interval = session.resumed, session.later_bytes, save_interval
        self.progress = Progress()
        self.saved: Progress | None = None
        """Progress at the last save."""
        self.owes = False
        """Whether a save failed and is tried again later."""

    def begin(self) -> Progress:
        """Prepares the batch loader; returns the progress: that of the checkpoint, or the start of a new run.

        Raises:
            UserError: a damaged checkpoint, or too little room on the disk.
        """
        if self.checkpoint is not None:
            self.progress = self.team.first(partial(self._found, self.checkpoint))
            self.saved = self.progress
            self.budget.take_up(**{name: getattr(self.progress, name) for name in self.budget.state()})
            self.loader.begin_at(self.progress.step, self.progress.samples)
        else:
            self.budget.begin_anew()
        self.budget.note()
        self.team.first(partial(self.checkpoint_store.require_room, checkpoint_bytes(self.model), self.later_bytes))
        shrunk = self.progress.micro_batch_tokens
        self.loader.prepare(shrunk, self.progress.n_recomputed if shrunk else None)
        return self.progress

    def _found(self, checkpoint: Path) -> Progress:
        """Returns the progress of the checkpoint that the run goes on from, after removing those of later steps."""
        progress = read_progress(checkpoint)
        self.checkpoint_store.forget_after(progress.step)
        self.checkpoint_store.tidy(progress, self.monitor.say)
        return progress

    def restore(self) -> None:
        """Restores weights, optimizer, random generators and the monitor's counts, if the run is resumed.

        Raises:
            UserError: the checkpoint is of another model.
        """
        if self.checkpoint is not None:
            self.put_back(self.checkpoint)
        self.monitor.begin()

    def put_back(self, checkpoint: Path) -> None:
        """Loads a checkpoint into model, optimizer, random generators and monitor.

        Raises:
            UserError: the checkpoint is of another model.
        """
        weights, state = read_state(checkpoint, self.checkpoint_store.weights.name)
        check_fit(weights, trained_parameters(self.model), checkpoint)
        load_weights_here(self.model, weights, self.team)
        chosen = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        saved = state_here(self.model, self.optimizer, state["optimizer"], self.team)
        self.optimizer.load_state_dict(copy.deepcopy(saved) if self.fabric.device.type == "cpu" else saved)
        for group, values in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(values)
        self.fabric._precision.load_state_dict(state["precision"])
        set_random_states(state["random"], self.fabric.device)
        self.monitor.restore(self.progress.monitor)
        if not self.budget.finish_seconds:  # it had no time limit before
            self.budget.rehearse_finish(checkpoint)

    def keep(self, progress: Progress, ends: bool, stops: bool = False) -> Progress:
        """Saves the run if that is due: at the interval, at its end, when it is stopped, or when it is the best so far.

        If the disk is full, the run tries again later; at its end, the trained weights alone may still have room.

        Raises:
            DiskError: the disk is full at the start of the run, when it is stopped, or for its weights at the end.
        """
        self.progress = progress
        due = progress.step % self.save_interval == 0 or progress.best_step == progress.step
        due = due or (self.owes and progress.step % max(1, self.save_interval // 10) == 0)
        if (ends or stops or due) and not self.is_saved:
            try:
                self.save()
            except (DiskError, OSError) as e:
                if self.saved is None:
                    raise
                self.owes = True
                if ends:
                    self._save_weights(e, self.saved)
                elif stops:
                    raise DiskError(f"step {progress.step} {_unsaved(e, self.saved)}") from e
                else:
                    note = f"step {progress.step} is not saved ({reason(e)}). The run goes on and tries again"
                    self.monitor.say(note)
        if ends and self.saved is not None and self.is_saved:
            self.team.first(partial(self.checkpoint_store.require_weights, self.saved.step))
        return self.progress

    def _save_weights(self, error: Exception, saved: Progress) -> None:
        """Writes the trained weights after the last step, whose checkpoint could not be written because of `error`.

        Raises:
            DiskError: they have no room, either.
        """
        weights, what = self.checkpoint_store.weights, f"the checkpoint of step {self.progress.step}"
        parts = Parts(self.team)
        trained = self.weights(parts)
        try:
            parts.first(partial(save_trained, trained, weights))
        except (DiskError, OSError):
            raise DiskError(f"{what}, with the trained weights, {_unsaved(error, saved)}") from error
        self.monitor.say(f"{what} {_unsaved(error, saved)}. Its trained weights are in {weights}")

    @property
    def is_saved(self) -> bool:
        """Whether nothing has happened since the last checkpoint."""
        now = self.progress
        return self.saved is not None and (now.step, now.validated_step) == (self.saved.step, self.saved.validated_step)

    def save(self) -> None:
        """Writes a checkpoint of the run.

        Raises:
            DiskError: the disk is full or fails.
        """
        self.monitor.report()
        began = time.monotonic()
        shrunk = self.loader.max_tokens if self.loader.has_shrunk else None
        self.progress = replace(
            self.progress,
            **self.budget.state(),
            micro_batch_tokens=shrunk,
            n_recomputed=self.model.n_recomputed,
            monitor=self.monitor.state(),
        )
        parts = Parts(self.team)
        trained, state = self.weights(parts), self.state(parts)
        checkpoint = parts.first(lambda: self.checkpoint_store.write(trained, state, self.progress, self.monitor.say))
        if first := self.saved is None:
            self.team.first(
                partial(read_progress, checkpoint)
            )  # what is written can be read, before the first hour is spent
        seconds = time.monotonic() - began
        self.budget.saved(seconds)
        self.monitor.saved(seconds)
        if first:
            self.monitor.paused(self.budget.rehearse_finish(checkpoint))
        self.saved, self.owes = self.progress, False

    def weights(self, parts: Parts) -> dict[str, Tensor | Later]:
        """Returns the trained weights; those that are divided among devices come when the leader writes them."""
        reshard(self.model)
        return weights_later(self.model, trained_parameters(self.model), parts)

    def state(self, parts: Parts) -> dict[str, Any]:
        """Returns what state.pth holds, in the same way."""
        return {
            "optimizer": state_later(self.model, self.optimizer, parts),
            "precision": self.fabric._precision.state_dict(),
            "random": random_states(self.fabric.device),
        }

    @contextmanager
    def saving_what_fails(self) -> Iterator[None]:
        """Saves a checkpoint before an error, such as running out of memory, ends the run.

        Of several processes one may have the error alone, and all take part in saving: then the last checkpoint stays.
        """
        try:
            yield
        except (UserError, RuntimeError) as e:
            can_be_saved = is_out_of_memory(e) if isinstance(e, RuntimeError) else not isinstance(e, DiskError)
            if self.team.is_alone and can_be_saved and self.saved is not None and not self.is_saved:
                what, then = f"the checkpoint of step {self.progress.step}", _way_on(self.saved)
                with going_on(what, self.monitor.say, then=then):
                    self.save()
            raise


def _unsaved(error: Exception, saved: Progress) -> str:
    """Returns what is said of a step whose checkpoint could not be written.

    Args:
        saved: progress at the last save.
    """
    return f"could not be written ({reason(error)}); {_way_on(saved)}"


def _way_on(saved: Progress) -> str:
    """Returns where a run can be resumed whose last steps are not saved."""
    return f"the newest checkpoint is that of step {saved.step}: make room, and --resume true goes on from there"
