"""Saves the whole state of a run as checkpoints when they are due, and resumes from one."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricOptimizer

from lit_gpt.checkpoints.trained import check_fit
from lit_gpt.errors import UserError
from lit_gpt.methods import trained_parameters
from lit_gpt.model import GPT
from lit_gpt.resources import is_out_of_memory
from lit_gpt.training.loader import BatchLoader
from lit_gpt.training.memory import checkpoint_bytes
from lit_gpt.training.randomness import random_states, set_random_states
from lit_gpt.training.run.checkpoint_store import Progress, read_progress, read_state
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
        optimizer: _FabricOptimizer,
        loader: BatchLoader,
        session: Session,
        save_interval: int,
    ) -> None:
        self.fabric, self.model, self.optimizer = fabric, model, optimizer.optimizer
        self.loader, self.checkpoint_store = loader, session.checkpoint_store
        self.monitor, self.budget = session.monitor, session.budget
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
            self.progress = read_progress(self.checkpoint)
            self.saved = self.progress
            self.budget.take_up(**{name: getattr(self.progress, name) for name in self.budget.state()})
            self.checkpoint_store.forget_after(self.progress.step)
            self.checkpoint_store.point_to(self.progress)
            self.loader.begin_at(self.progress.step, self.progress.samples)
        else:
            self.budget.begin_anew()
        self.budget.note()
        self.checkpoint_store.require_room(checkpoint_bytes(self.model), self.later_bytes)
        shrunk = self.progress.micro_batch_tokens
        self.loader.prepare(shrunk, self.progress.n_recomputed if shrunk else None)
        return self.progress

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
        self.model.load_state_dict(weights, strict=False)
        chosen = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        saved = state["optimizer"]
        self.optimizer.load_state_dict(copy.deepcopy(saved) if self.fabric.device.type == "cpu" else saved)
        for group, values in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(values)
        self.fabric._precision.load_state_dict(state["precision"])
        set_random_states(state["random"], self.fabric.device)
        self.monitor.restore(self.progress.monitor)
        if not self.budget.finish_seconds:  # it had no time limit before
            self.budget.rehearse_finish(checkpoint)

    def keep(self, progress: Progress, ends: bool) -> Progress:
        """Saves the run if that is due: at the interval, at its end, or when it is the best so far.

        Raises:
            UserError: the disk is full at the start or at the end of the run; in between, the run tries again later.
        """
        self.progress = progress
        due = progress.step % self.save_interval == 0 or progress.best_step == progress.step
        due = due or (self.owes and progress.step % max(1, self.save_interval // 10) == 0)
        if not (ends or due) or self.is_saved:
            return progress
        try:
            self.save()
        except (UserError, OSError) as e:
            if ends or self.saved is None:
                raise
            self.owes = True
            self.monitor.say(f"step {progress.step} is not saved: {e}. The run goes on and tries again")
        return self.progress

    @property
    def is_saved(self) -> bool:
        """Whether nothing has happened since the last checkpoint."""
        now = self.progress
        return self.saved is not None and (now.step, now.validated_step) == (self.saved.step, self.saved.validated_step)

    def save(self) -> None:
        """Writes a checkpoint of the run.

        Raises:
            UserError: the disk is full.
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
        checkpoint = self.checkpoint_store.write(self.model, self.state(), self.progress)
        if self.saved is None:
            read_progress(checkpoint)  # what is written can be read, before the first hour is spent
        first, self.saved, self.owes = self.saved is None, self.progress, False
        seconds = time.monotonic() - began
        self.budget.saved(seconds)
        self.monitor.saved(seconds)
        if first:
            self.monitor.paused(self.budget.rehearse_finish(checkpoint))

    def state(self) -> dict[str, Any]:
        """Returns what state.pth holds."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric._precision.state_dict(),
            "random": random_states(self.fabric.device),
        }

    @contextmanager
    def saving_what_fails(self) -> Iterator[None]:
        """Saves a checkpoint before an error, such as running out of memory, ends the run."""
        try:
            yield
        except (UserError, RuntimeError) as e:
            if (isinstance(e, UserError) or is_out_of_memory(e)) and self.saved is not None and not self.is_saved:
                self.save()
            raise
