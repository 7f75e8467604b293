"""Starts HELM's programs and our server as processes, and ends them whatever happens."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import lit_gpt
from lit_gpt.errors import UserError

_ROOT = Path(lit_gpt.__file__).parents[1]
_ENVIRONMENT = _ROOT / ".venv-helm"
_LIST = "lib/python3*/site-packages/helm/benchmark/augmentations/correct_to_misspelling.json"
_PATIENCE = 40.0
"""Seconds that a process gets to end after SIGTERM; our server lets requests end for 30."""
_POLL = 0.2


def helm_program(name: str) -> Path:
    """Returns a program of HELM; raises UserError if it is not installed."""
    found = _found(name)
    if found is None:
        raise UserError(f"HELM is not installed here (no {_ENVIRONMENT / 'bin' / name}); run: make helm")
    return found


def _found(name: str) -> Path | None:
    """Returns a program of HELM, as `make helm` has installed it or else from the PATH; None if there is none."""
    own = _ENVIRONMENT / "bin" / name
    found = str(own) if own.is_file() else shutil.which(name)
    return None if found is None else Path(found)


def find_misspellings() -> Path | None:
    """Returns the list of misspellings of the HELM that is installed here; None if none is."""
    program = _found("helm-run")
    return None if program is None else next(iter(sorted(program.resolve().parents[1].glob(_LIST))), None)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Lets SIGTERM end the work like Ctrl-C does, so that what was started is ended, too."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _running(
    command: Sequence[str | Path],
    log: Path,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    is_read: bool = False,
) -> Iterator[subprocess.Popen[str]]:
    """Runs a program in a session of its own, which Ctrl-C does not reach, and ends all of it.

    Args:
        is_read: whether the caller reads what it prints, which goes to `log` otherwise.
    """
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE if is_read else file,
            stderr=file,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(_PATIENCE)
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def served(flags: Sequence[str | Path], log: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serves a model on a free port of the loopback interface; yields its address and its process.

    Args:
        flags: those of `scripts/serve.py`.
        log: file for what it says.

    Raises:
        UserError: it does not start; the message is the server's.
    """
    command = [sys.executable, _ROOT / "scripts" / "serve.py", *flags, "--host", "127.0.0.1", "--port", "0"]
    with _running(command, log, is_read=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Serving "):
                yield line.rsplit(" on ", 1)[1].strip(), process
                return
        raise UserError(_last_line(log).removeprefix("error: ") or f"the server did not start; {log} has what it said")


def run_program(
    command: Sequence[str | Path],
    *,
    folder: Path,
    log: Path,
    environment: dict[str, str],
    server: subprocess.Popen[str] | None = None,
) -> int:
    """Runs a program of HELM until it ends; returns its exit status.

    Args:
        folder: working folder.
        environment: variables besides those of this process.
        server: process without which it waits in vain.

    Raises:
        UserError: the server ended first.
    """
    env = os.environ | environment
    env.pop("PYTHONPATH", None)  # HELM has packages of its own
    with _running(command, log, folder=folder, environment=env) as process:
        while process.poll() is None:
            if server is not None and server.poll() is not None:
                raise UserError(f"the server ended with status {server.returncode} while HELM was asking it")
            time.sleep(_POLL)
        return process.returncode


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
