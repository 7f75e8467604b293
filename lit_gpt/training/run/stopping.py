"""SIGTERM and SIGINT: the first one stops a run after its micro-batch, the second one at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from lit_gpt.parallel.team import ALONE, Team


class Stop:
    """The request to stop, if there was one."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.noted: str | None = None
        """Name of the first signal that this process got; None before there is one."""
        self.agreed: str | None = None

    @property
    def signal(self) -> str | None:
        """Name of the signal by which the run stops; with several processes, one that `agree` has found."""
        return self.noted if self.team.is_alone else self.agreed

    def agree(self) -> str | None:
        """Returns the signal that any process of the run got, the same in all of them."""
        if not self.team.is_alone and self.agreed is None:
            self.agreed = next(filter(None, self.team.every(self.noted)), None)
        return self.signal


@contextmanager
def stop_signals(team: Team = ALONE) -> Iterator[Stop]:
    """Notes a first SIGTERM or SIGINT within the block; a second one ends the process at once."""
    stop, when = Stop(team), "micro-batch" if team.is_alone else "step"

    def note(number: int, frame: FrameType | None) -> None:
        if stop.noted is None:
            stop.noted = signal.Signals(number).name
            message = f"\n{stop.noted}: stopping after this {when}; once more stops at once\n"
            with suppress(OSError):  # not print: the signal may have come in the middle of one
                os.write(1, message.encode()) if team.leads else None
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
        yield stop
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
