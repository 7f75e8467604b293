"""Starts what a submission serves, without Docker or in a container, and waits until it answers."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import requests

from lit_gpt.errors import UserError, one_line
from lit_gpt.submission.check.helm import HEALTH, require_processed
from lit_gpt.submission.check.steps import Built, last_words

_TIMEOUT = 3_000
"""Seconds that HELM's client waits for an answer."""
_BETWEEN_TRIES = 0.5
_UVICORN = "import sys; from uvicorn.main import main; sys.argv[0] = 'uvicorn'; sys.exit(main())"
"""Program that does what the command uvicorn does, also where that is installed for another interpreter."""
_STOPPING = 40
"""Seconds that a server gets to end."""


@dataclass(frozen=True)
class Running:
    """A server that was started."""

    url: str
    ended: Callable[[], str | None]
    """Returns None while the server runs, and then the last it said."""
    memory: Callable[[], float | None]
    """Returns the most bytes that it has taken, as far as that can be known."""

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Posts a body and returns the answer; raises UserError if it is none."""
        try:
            answer = requests.post(f"{self.url}{path}", json=body, timeout=_TIMEOUT)
        except requests.RequestException as e:
            said = self.ended()
            raise UserError(
                f"{path} was not answered ({type(e).__name__}){f'; it said: {said}' if said else ''}"
            ) from e
        if answer.status_code != 200:
            raise UserError(f"{path} was answered with {answer.status_code}: {one_line(answer.text, 300)}")
        try:
            found = answer.json()
        except ValueError as e:
            raise UserError(f"{path} was answered with what is no JSON: {one_line(answer.text, 300)}") from e
        if not isinstance(found, dict):
            raise UserError(f"{path} was answered with {one_line(answer.text, 300)}, and HELM reads an object")
        return found


@contextmanager
def started(built: Built, command: list[str]) -> Iterator[Running]:
    """Starts a submission's command in the folder that stands for its image, on a free port of this machine alone."""
    port = free_port()
    words = list(command)
    for flag, value in (("--host", "127.0.0.1"), ("--port", str(port))):
        words[words.index(flag) + 1] = value
    if words[0] != "uvicorn":
        raise UserError(f"the image starts {words[0]}, and without Docker only uvicorn is known; pass --builder docker")
    with TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [str(built.python), "-c", _UVICORN, *words[1:]],
            cwd=built.at(),
            env=built.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield Running(
                f"http://127.0.0.1:{port}",
                lambda: None if process.poll() is None else _said(log),
                lambda: _peak(process.pid),
            )
        finally:
            _end(process)


def free_port() -> int:
    """Returns a port of the loopback interface that is free now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def wait(server: Running, minutes: float) -> tuple[float, dict[str, Any]]:
    """Waits until the health check is answered; returns the seconds that took, and the answer.

    Raises:
        UserError: the server ended, answered what it should not, or does not answer in time.
    """
    began = time.monotonic()
    last = "no answer"
    while (seconds := time.monotonic() - began) < 60 * minutes:
        if (said := server.ended()) is not None:
            raise UserError(f"the server ended before it answered; it said: {said}")
        try:
            answer = requests.post(f"{server.url}/process", json=HEALTH, timeout=60 * minutes - seconds + 1)
            last = f"{answer.status_code}: {one_line(answer.text, 200)}"
            if answer.status_code == 200:
                return time.monotonic() - began, require_processed(answer.json(), "the health check: /process")
            if answer.status_code not in (502, 503, 504):
                raise UserError(f"the health check was answered with {last}")
        except (requests.ConnectionError, requests.Timeout):
            pass
        except ValueError as e:
            raise UserError("the health check was answered with what is no JSON") from e
        time.sleep(_BETWEEN_TRIES)
    raise UserError(f"the server did not answer within {minutes:g} minutes ({last}); the organizers give up then, too")


def _said(log: IO[str]) -> str:
    """Returns what went wrong, by the end of a log."""
    log.seek(0)
    return last_words(log.read()[-20_000:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server and what it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOPPING)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _peak(pid: int) -> float | None:
    """Returns the most bytes of memory that a process has taken, and of the GPU's that it has; None if nobody says."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        host = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return max(host, _of_gpu(pid))


def _of_gpu(pid: int) -> float:
    """Returns the bytes of the GPU's memory that a process has, as nvidia-smi says; 0 if it says nothing."""
    if shutil.which("nvidia-smi") is None:
        return 0.0
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60).stdout.splitlines()
    found = [line.split(",")[1].strip() for line in lines if line.split(",")[0].strip() == str(pid)]
    return sum(float(mib) * 2**20 for mib in found if mib.isdigit())
