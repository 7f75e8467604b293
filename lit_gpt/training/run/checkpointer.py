"""Everything that a run goes on from, gathered into checkpoints and put back from them."""

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
    """Saves a run when that is due, and takes it up again.

    Args:
        save_interval: steps between checkpoints.
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
        """The last one that was saved."""
        self.owes = False
        """Whether a save failed and is to be tried again."""

    def begin(self) -> Progress:
        """Where the run is: at its start, or where the checkpoint has it. Gets micro-batches ready.

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
        """Put back the weights, the optimizer, the random generators and the monitor's counts, if it goes on.

        Raises:
            UserError: it is of another model.
        """
        if self.checkpoint is not None:
            self.put_back(self.checkpoint)
        self.monitor.begin()

    def put_back(self, checkpoint: Path) -> None:
        """What the checkpoint in `checkpoint` has. Raises: UserError, as `restore`."""
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
        if not self.budget.finish_seconds:  # it had no deadline before
            self.budget.rehearse_finish(checkpoint)

    def keep(self, progress: Progress, ends: bool) -> Progress:
        """Save the run if that is due: at the interval, at its end, when it is the best so far.

        Raises:
            UserError: the disk is full, at the start or at the end of the run; in between it goes on and tries again.
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
        """Whether there is nothing new since the last checkpoint."""
        now = self.progress
        return self.saved is not None and (now.step, now.validated_step) == (self.saved.step, self.saved.validated_step)

    def save(self) -> None:
        """Write a checkpoint of the run as it is. Raises: UserError if the disk is full."""
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
        """What goes into state.pth."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric._precision.state_dict(),
            "random": random_states(self.fabric.device),
        }

    @contextmanager
    def saving_what_fails(self) -> Iterator[None]:
        """What ends the run from within, such as a lack of memory, ends it with a checkpoint."""
        try:
            yield
        except (UserError, RuntimeError) as e:
            if (isinstance(e, UserError) or is_out_of_memory(e)) and self.saved is not None and not self.is_saved:
                self.save()
            raise
