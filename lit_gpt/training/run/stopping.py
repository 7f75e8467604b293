"""SIGTERM and SIGINT: the first one stops a run after its micro-batch, the second one at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class Stop:
    """The request to stop, if there was one."""

    signal: str | None = None
    """Name of the first signal; None before there is one."""


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Notes a first SIGTERM or SIGINT within the block; a second one ends the process at once."""
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.signal is None:
            stop.signal = signal.Signals(number).name
            message = f"\n{stop.signal}: stopping after this micro-batch; once more stops at once\n"
            with suppress(OSError):  # not print: the signal may have come in the middle of one
                os.write(1, message.encode())
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
