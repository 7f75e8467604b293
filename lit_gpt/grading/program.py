"""A checker of the user's: a Python file in a process of its own, which is replaced when it takes too long."""

import json
import queue
import subprocess
import sys
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError

_MOST_MEMORY = 2 * 1024**3
"""Bytes of address space that the process may have."""
_STARTING = 30.0
"""Seconds that the process may take to import the file."""


class Program:
    """A checker that asks the function `score` of a Python file.

    An answer that makes it raise, run too long or end scores 0, and the next one gets a new process.

    Args:
        seconds: time that an answer may take.

    Raises:
        UserError: there is no such file, or it has no function `score`.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        if not path.is_file():
            raise UserError(f"--checker_file: there is no file {path}")
        self.path, self.seconds = path.resolve(), seconds
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.Queue[str | None] = queue.Queue()
        self._start()

    def __call__(self, prompt: str, answer: str, expected: str) -> float:
        """Returns the score of an answer, from 0 to 1."""
        if self.process is None:
            self._start()
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([prompt, answer, expected]) + "\n")
            self.process.stdin.flush()
            reply = self._reply(self.seconds)
        except OSError:
            reply = None
        score = reply.get("score") if isinstance(reply, dict) else None
        if score is None:
            self.close()
            return 0.0
        return min(1.0, max(0.0, float(score)))

    def close(self) -> None:
        """Ends the process."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def __del__(self) -> None:
        self.close()

    def _start(self) -> None:
        """Starts a process; raises UserError if the file cannot be used."""
        host = str(files("lit_gpt.grading").joinpath("host.py"))
        self.process = subprocess.Popen(
            [sys.executable, "-I", host, str(self.path), str(_MOST_MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            cwd=self.path.parent,
            env={},
        )
        self.lines = queue.Queue()
        threading.Thread(target=_read, args=(self.process, self.lines), daemon=True).start()
        hello = self._reply(_STARTING)
        if not isinstance(hello, dict) or "error" in hello:
            self.close()
            raise UserError(f"--checker_file {self.path}: {hello['error'] if hello else 'it ended while it was read'}")

    def _reply(self, seconds: float) -> Any:
        """Returns the next line of the process as a value; None if it ended or is too slow."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            return None
        try:
            return json.loads(line) if line is not None else None
        except (ValueError, RecursionError):
            return None


def _read(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    """Puts each line that a process writes into a queue, and None after the last."""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.put(line)
    except (OSError, ValueError):
        pass
    lines.put(None)
