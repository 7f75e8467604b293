"""The time limit of a run: what is used, what is left for steps, and how many steps fit."""

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

from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.training.length import Length

LEDGER = "seconds_used.txt"
"""File in a run's folder with the seconds that all of its processes have used."""
_NOTED = 5.0
"""Seconds between two updates of the ledger."""
_MOST_STEPS = 2**62
"""Most steps that are looked through for the last one that fits: no range may be longer."""
_STARTED = time.monotonic()
"""Time of this module's import, for systems that do not tell when the process began."""


def process_seconds() -> float:
    """Returns the seconds since this process began, by a monotonic clock."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # field 22, starttime, proc(5)
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - _STARTED


class Budget:
    """The time that a run takes and may take, over all of its processes.

    Args:
        max_seconds: limit; None is no limit.
        finish: does what follows the training with a checkpoint, and leaves nothing behind; called once, early, to
            measure how long that takes.
        validates_again: what follows the training includes another validation.
        ledger: file that keeps the time used, so that the time of a killed process counts.
        eval_interval, save_interval: optimizer steps between validations, and between saves; None is never.
        team: the processes that go by the clock of their leader.
    """

    def __init__(
        self,
        max_seconds: float | None = None,
        finish: Callable[[Path], None] | None = None,
        validates_again: bool = False,
        ledger: Path | None = None,
        eval_interval: int | None = None,
        save_interval: int | None = None,
        team: Team = ALONE,
    ) -> None:
        self.team = team
        self.max_seconds, self.finish, self.validates_again = max_seconds, finish, validates_again
        self.ledger, self.noted = ledger, -math.inf
        self.eval_interval, self.save_interval = eval_interval, save_interval
        self.finish_seconds = 0.0
        self.used_before = 0.0
        self.validation_seconds = self.save_seconds = 0.0
        """Seconds of the latest validation and save, which are reserved for the last ones."""
        self.loss_seconds = 0.0
        """Seconds of the latest validation, without the score of a task."""
        self.durations: deque[float] = deque(maxlen=101)
        self.expected_seconds = 0.0
        """Seconds that a step is expected to take before one was timed; 0 if unknown."""
        self.began = self.paused = 0.0
        self.n_begun = 0
        self.event: torch.cuda.Event | None = None

    def state(self) -> dict[str, float]:
        """Returns what a checkpoint keeps, which `take_up` takes when the run is resumed."""
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
        """Resumes a run that has used some time: as much as its checkpoint says, or its ledger if that is more."""
        self.used_before, self.finish_seconds = max(seconds, self.entry()), finish_seconds
        self.validation_seconds, self.save_seconds = validation_seconds, save_seconds
        self.expected_seconds = step_seconds

    def begin_anew(self) -> None:
        """Begins a new run: deletes the ledger, which is another run's."""
        if self.ledger is not None:
            self.ledger.unlink(missing_ok=True)

    def entry(self) -> float:
        """Returns the seconds in the ledger; 0 if it cannot be read."""
        try:
            seconds = float(self.ledger.read_text(encoding="utf-8")) if self.ledger else 0.0
        except (OSError, ValueError):
            return 0.0
        return seconds if 0 <= seconds < math.inf else 0.0

    def note(self) -> None:
        """Writes the time used to the ledger; does nothing if the disk is full.

        It is written over what is there, which is never longer: so it is never empty, and needs no room on the disk.
        """
        if self.ledger is not None:  # without a limit, too: one can be set when the run is resumed
            with suppress(OSError), open(os.open(self.ledger, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
                file.write(f"{self.used:.1f}\n".encode())
                file.truncate()

    def rehearse_finish(self, checkpoint: Path) -> float:
        """Measures how long what follows the training takes with a checkpoint; returns the seconds taken."""
        if self.finish is None or self.max_seconds is None:
            return 0.0
        began = time.monotonic()
        self.finish(checkpoint)
        seconds = time.monotonic() - began
        self.finish_seconds = seconds + self.validates_again * (self.loss_seconds or self.validation_seconds)
        return seconds

    @property
    def reserve(self) -> float:
        """Seconds reserved for the end: the last validation and save, what follows the training, and a margin."""
        return 1.2 * (self.validation_seconds + self.save_seconds + self.finish_seconds) + 5.0

    @property
    def used(self) -> float:
        """Seconds that all processes of the run have used so far."""
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
        """Median seconds of the latest steps, without the first one, which warms up; the expected ones before that."""
        return statistics.median(self.durations) if self.durations else self.expected_seconds

    def validated(self, seconds: float, loss_seconds: float) -> None:
        """Records a validation, which does not count as part of a step; the loss alone took `loss_seconds`."""
        self.validation_seconds, self.loss_seconds = seconds, loss_seconds
        self.paused += seconds

    def saved(self, seconds: float) -> None:
        """Records a save, which does not count as part of a step."""
        self.save_seconds = seconds
        self.paused += seconds

    def begin_step(self, device: torch.device) -> None:
        """Ends the time of the step before and begins that of the next one.

        Under a limit the host waits for a GPU's step, one step late: the queue of kernels would hide the time.
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
        """Returns whether there is time for a last validation and for what follows the training."""
        return self._led(self.left + 1.2 * self.validation_seconds > 0)

    def has_time_for_a_step(self) -> bool:
        """Returns whether another step ends in time, by the steps timed so far; untimed ones are tried."""
        return self._led(self.left > 0 and (not self.durations or self.left >= self.step_seconds))

    def _led(self, decision: bool) -> bool:
        """Returns the leader's decision; without a limit, all decide alike."""
        return decision if self.max_seconds is None else self.team.lead(decision)

    def cut(self, length: Length, step: int) -> Length:
        """Returns the length of the run: `length`, or less if the time is up before.

        The learning rate's schedule spans these steps. It follows the clock only where the time limit ends the run.

        Args:
            step: optimizer steps that are done.
        """
        return length if self.max_seconds is None else self.team.lead(self._cut(length, step))

    def _cut(self, length: Length, step: int) -> Length:
        """Returns what `cut` does, by this process's clock."""
        if not self.step_seconds:
            return length
        more = range(1, min(max(1, length.n_steps - step), _MOST_STEPS) + 1)
        fitting = bisect.bisect_right(more, self.left, key=lambda n: self.seconds_of(step, n))
        return length if fitting == len(more) else length.cut(step + max(1, fitting), "max_time")

    def seconds_of(self, step: int, n: int) -> float:
        """Returns the seconds of `n` steps after `step`, with the validations and saves between them."""

        def between(interval: int | None) -> int:
            return (step + n - 1) // interval - step // interval if interval else 0

        n_validations, n_saves = between(self.eval_interval), between(self.save_interval)
        if self.eval_interval and self.save_interval:  # each validation can be the best, and is saved then
            n_saves += n_validations - between(math.lcm(self.eval_interval, self.save_interval))
        return n * self.step_seconds + n_validations * self.validation_seconds + n_saves * self.save_seconds
