"""The time that a run may take: what is used, what is left for steps, and how many steps that will be."""

import bisect
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from lit_gpt.training.length import Length

LEDGER = "seconds_used.txt"
"""File of a run's folder with the time that all of its processes have used."""
_NOTED = 5.0
"""Seconds between entries of the ledger."""
_STARTED = time.monotonic()
"""When this module was imported, for systems that do not tell when the process began."""


def process_seconds() -> float:
    """Since this process began, by a clock that nobody sets."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # field 22, starttime, proc(5)
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - _STARTED


class Budget:
    """Time of a run over all of its processes.

    Args:
        max_seconds: what it may take; None is no limit.
        finish: does with the checkpoint in a folder what is done with the last one after the training, but leaves
            nothing; it is called once, early, to know how long that takes.
        validates_again: the loss is measured once more after that.
        ledger: file that keeps the time used, so that what a killed process used since its last checkpoint counts.
        eval_interval, save_interval: optimizer steps between validations, and between saves; None is none of them.
    """

    def __init__(
        self,
        max_seconds: float | None = None,
        finish: Callable[[Path], None] | None = None,
        validates_again: bool = False,
        ledger: Path | None = None,
        eval_interval: int | None = None,
        save_interval: int | None = None,
    ) -> None:
        self.max_seconds, self.finish, self.validates_again = max_seconds, finish, validates_again
        self.ledger, self.noted = ledger, -math.inf
        self.eval_interval, self.save_interval = eval_interval, save_interval
        self.finish_seconds = 0.0
        self.used_before = 0.0
        self.validation_seconds = self.save_seconds = 0.0
        """How long the last ones took: what is kept for those at the end."""
        self.loss_seconds = 0.0
        """Of the last validation, without the score of a task."""
        self.durations: deque[float] = deque(maxlen=101)
        self.expected_seconds = 0.0
        """What a step is expected to take before one was timed; 0 if nothing is known."""
        self.began = self.paused = 0.0
        self.n_begun = 0
        self.event: torch.cuda.Event | None = None

    def state(self) -> dict[str, float]:
        """What another process of the run goes on with; `take_up` takes it."""
        names = ("validation_seconds", "save_seconds", "finish_seconds", "step_seconds")
        return {"seconds": self.used} | {name: getattr(self, name) for name in names}

    def take_up(
        self,
        *,
        seconds: float,
        validation_seconds: float,
        save_seconds: float,
        finish_seconds: float,
        step_seconds: float = 0.0,
    ) -> None:
        """Go on with a run that has used some time already: what its checkpoint says, or the ledger if that is more."""
        self.used_before, self.finish_seconds = max(seconds, self.entry()), finish_seconds
        self.validation_seconds, self.save_seconds = validation_seconds, save_seconds
        self.expected_seconds = step_seconds

    def begin_anew(self) -> None:
        """Begin a new run: what the ledger says is another's."""
        if self.ledger is not None:
            self.ledger.unlink(missing_ok=True)

    def entry(self) -> float:
        """Seconds that the ledger says; 0 if it cannot be read."""
        try:
            return float(self.ledger.read_text(encoding="utf-8")) if self.ledger else 0.0
        except (OSError, ValueError):
            return 0.0

    def note(self) -> None:
        """Write the time used to the ledger; a full disk is no reason to stop."""
        if self.ledger is not None:  # without a limit, too: one can be set when the run goes on
            with suppress(OSError):
                self.ledger.write_text(f"{self.used:.1f}\n", encoding="utf-8")

    def rehearse_finish(self, checkpoint: Path) -> float:
        """Measure how long what follows the training takes with a checkpoint; returns the seconds that it took now."""
        if self.finish is None or self.max_seconds is None:
            return 0.0
        began = time.monotonic()
        self.finish(checkpoint)
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
    def step_seconds(self) -> float:
        """The median of the latest steps, without the first one, which warms up; before there is one, what is expected,
        or 0 if nothing is known."""
        return statistics.median(self.durations) if self.durations else self.expected_seconds

    def validated(self, seconds: float, loss_seconds: float) -> None:
        """A validation is done, which is no part of a step; the loss alone took `loss_seconds`."""
        self.validation_seconds, self.loss_seconds = seconds, loss_seconds
        self.paused += seconds

    def saved(self, seconds: float) -> None:
        """A checkpoint is written, which is no part of a step."""
        self.save_seconds = seconds
        self.paused += seconds

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
        if now - self.noted > _NOTED:
            self.note()
            self.noted = now
        if self.n_begun >= 2:
            self.durations.append(max(0.0, now - self.began - self.paused))
        self.n_begun += 1
        self.began, self.paused = now, 0.0

    def has_time_to_validate(self) -> bool:
        """Whether the whole of the limit leaves time for the last validation, and for what comes after it."""
        return self.left + 1.2 * self.validation_seconds > 0

    def has_time_for_a_step(self) -> bool:
        """Whether another step ends in time, by those that were timed; the first ones are tried, and maybe given up."""
        return self.left > 0 and (not self.durations or self.left >= self.step_seconds)

    def cut(self, length: Length, step: int) -> Length:
        """How long the run will be: `length`, or less if the time ends before.

        The schedule runs over these steps. Where time is what ends the run, it follows the clock; where it is not,
        nothing depends on that.

        Args:
            step: optimizer steps that are done.
        """
        if self.max_seconds is None or not self.step_seconds:
            return length
        more = range(1, max(1, length.n_steps - step) + 1)
        fitting = bisect.bisect_right(more, self.left, key=lambda n: self.seconds_of(step, n))
        return length if fitting == len(more) else length.cut(step + max(1, fitting), "max_time")

    def seconds_of(self, step: int, n: int) -> float:
        """What `n` steps after `step` take, with the validations and saves between them; those at the end are kept."""

        def between(interval: int | None) -> int:
            return (step + n - 1) // interval - step // interval if interval else 0

        n_validations, n_saves = between(self.eval_interval), between(self.save_interval)
        if self.eval_interval and self.save_interval:  # each validation can be the best, and is saved then
            n_saves += n_validations - between(math.lcm(self.eval_interval, self.save_interval))
        return n * self.step_seconds + n_validations * self.validation_seconds + n_saves * self.save_seconds
