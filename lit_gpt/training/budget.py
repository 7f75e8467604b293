"""The time that a run may take: what is used, what is left for steps, and how many steps that will be."""

import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

NOTED = 5.0
"""Seconds between entries of the ledger."""
STARTED = time.monotonic()
"""When this module was imported, for systems that do not tell when the process began."""


def process_seconds() -> float:
    """Since this process began, by a clock that nobody sets."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # field 22, starttime, proc(5)
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - STARTED


class Budget:
    """Time of a run over all of its processes.

    Args:
        max_seconds: what it may take; None is no limit.
        finish: does with the checkpoint in a folder what is done with the last one after the training, but leaves
            nothing; it is called once, early, to know how long that takes.
        validates_again: the loss is measured once more after that.
        ledger: file that keeps the time used, so that what a killed process used since its last checkpoint counts.
    """

    def __init__(
        self,
        max_seconds: float | None = None,
        finish: Callable[[Path], None] | None = None,
        validates_again: bool = False,
        ledger: Path | None = None,
    ) -> None:
        self.max_seconds, self.finish, self.validates_again = max_seconds, finish, validates_again
        self.ledger, self.noted = ledger, -math.inf
        self.finish_seconds = 0.0
        self.used_before = 0.0
        self.validation_seconds = self.save_seconds = 0.0
        """How long the last ones took: what is kept for those at the end."""
        self.loss_seconds = 0.0
        """Of the last validation, without the score of a task."""
        self.durations: deque[float] = deque(maxlen=101)
        self.began = 0.0
        self.n_begun = 0
        self.event: torch.cuda.Event | None = None

    def state(self) -> dict[str, float]:
        """What another process of the run goes on with; `take_up` takes it."""
        names = ("validation_seconds", "save_seconds", "finish_seconds")
        return {"seconds": self.used} | {name: getattr(self, name) for name in names}

    def take_up(self, seconds: float, validation_seconds: float, save_seconds: float, finish_seconds: float) -> None:
        """Go on with a run that has used some time already: what its checkpoint says, or the ledger if that is more."""
        self.used_before, self.finish_seconds = max(seconds, self.entry()), finish_seconds
        self.validation_seconds, self.save_seconds = validation_seconds, save_seconds

    def entry(self) -> float:
        """Seconds that the ledger says; 0 if it cannot be read."""
        try:
            return float(self.ledger.read_text(encoding="utf-8")) if self.ledger else 0.0
        except (OSError, ValueError):
            return 0.0

    def note(self) -> None:
        """Write the time used to the ledger; a full disk is no reason to stop."""
        if self.ledger is not None and self.max_seconds is not None:
            with suppress(OSError):
                self.ledger.write_text(f"{self.used:.1f}\n", encoding="utf-8")

    def rehearse_finish(self, place: Path) -> float:
        """Measure how long what comes after the training takes, with the checkpoint in `place`; seconds it took now."""
        if self.finish is None or self.max_seconds is None:
            return 0.0
        began = time.monotonic()
        self.finish(place)
        seconds = time.monotonic() - began
        self.finish_seconds = seconds + self.validates_again * (self.loss_seconds or self.validation_seconds)
        return seconds

    @property
    def reserve(self) -> float:
        """Seconds kept for the end: the last validation and save, what comes after, and some doubt."""
        return 1.2 * (self.validation_seconds + self.save_seconds + self.finish_seconds) + 5.0

    @property
    def used(self) -> float:
        """Seconds so far."""
        return self.used_before + process_seconds()

    def deadline_in(self) -> float:
        """Seconds until the limit is reached."""
        return math.inf if self.max_seconds is None else self.max_seconds - self.used

    @property
    def left(self) -> float:
        """Seconds left for steps."""
        return self.deadline_in() - self.reserve

    @property
    def is_over(self) -> bool:
        """Whether the time for steps has passed."""
        return self.left <= 0

    @property
    def step_seconds(self) -> float | None:
        """The median of the latest steps, without the first one, which warms up; None before there is one."""
        return statistics.median(self.durations) if self.durations else None

    def begin_step(self, device: torch.device) -> None:
        """A step begins, and so the one before has ended.

        With a limit, a GPU's step is waited for until it is done, one step late: its queue would hide what time it is.
        """
        if self.max_seconds is not None and device.type == "cuda":
            event, self.event = self.event, torch.cuda.Event()
            self.event.record()
            if event is not None:
                event.synchronize()
        now = time.monotonic()
        if now - self.noted > NOTED:
            self.note()
            self.noted = now
        if self.n_begun >= 2:
            self.durations.append(now - self.began)
        self.n_begun += 1
        self.began = now

    def has_time_to_validate(self) -> bool:
        """Whether the whole of the limit leaves time for the last validation, and for what comes after it."""
        return self.left + 1.2 * self.validation_seconds > 0

    def has_time_for_a_step(self) -> bool:
        return self.left > (self.step_seconds or 0.0)

    def expected_steps(self, done: int, n_steps: int) -> float:
        """Steps that the run will have: `n_steps`, or fewer if the time ends before.

        The schedule runs over this number. Where time is what ends the run, done / expected is the fraction of time
        used; where it is not, nothing depends on the clock.

        Args:
            done: steps so far.
        """
        if self.max_seconds is None or self.step_seconds is None:
            return n_steps
        return min(n_steps, done + max(1.0, self.left / self.step_seconds))
