"""A thread that steps an engine while there is work, for callers that wait on other things."""

import threading
import time
from collections.abc import Callable
from typing import Any

from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import Delta, Request

_LONGEST_SLEEP = 1.0
"""Seconds after which the thread looks for work even if nobody woke it."""


class EngineThread:
    """A context manager: within it, a thread answers what is submitted."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def __enter__(self) -> "EngineThread":
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop()

    def submit(self, request: Request, deliver: Callable[[Delta], None]) -> int:
        """Does what `Engine.submit` does; `deliver` is called on the thread that steps."""
        return self.engine.submit(request, deliver)

    def cancel(self, ticket: int) -> None:
        """Does what `Engine.cancel` does."""
        self.engine.cancel(ticket)

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Ends the thread: waits for what runs for so many seconds, and then cancels the rest."""
        end = time.monotonic() + drain_seconds
        while self._thread.is_alive() and self.engine.has_work() and time.monotonic() < end:
            time.sleep(0.01)
        self.engine.cancel_all()
        self._ends = True
        self.engine.work.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            if not self.engine.step():
                if self._ends:
                    return
                self.engine.work.wait(_LONGEST_SLEEP)
