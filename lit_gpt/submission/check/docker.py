"""Builds a submission's images with docker or podman, and starts its container as the organizers do."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.submission.check.server import Running, free_port
from lit_gpt.submission.check.steps import last_words

_BUILDERS = ("docker", "podman")
_UNITS = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_PATIENCE = 3 * 3600
"""Seconds that a build may take."""


def builder_of(asked: str) -> tuple[str | None, str]:
    """Returns docker or podman, whichever runs here, or None; and why.

    Raises:
        UserError: the one that was asked for does not run.
    """
    if asked == "none":
        return None, "--builder none"
    reasons = []
    for name in _BUILDERS if asked == "auto" else (asked,):
        if shutil.which(name) is None:
            reasons.append(f"{name} is not installed")
        elif (answer := _called([name, "info"], 60)).returncode or "Cannot connect" in answer.stderr + answer.stdout:
            reasons.append(f"{name} is installed, but does not answer")
        else:
            return name, name
    if asked != "auto":
        raise UserError(f"--builder {asked}: {reasons[0]}; --builder none carries the steps out without it")
    return None, ", and ".join(reasons)


def build(builder: str, folder: Path, dockerfile: str, tag: str) -> None:
    """Builds an image; raises UserError with the last line of the build if it fails."""
    done = _called([builder, "build", "-f", str(folder / dockerfile), "-t", tag, str(folder)], _PATIENCE)
    if done.returncode:
        raise UserError(f"{builder} does not build {dockerfile}: {last_words(done.stdout + done.stderr)}")


@contextmanager
def container(builder: str, tag: str) -> Iterator[Running]:
    """Starts a container of an image, with the machine's GPUs, its port 80 as a free one of this machine alone."""
    port = free_port()
    gpus = ["--gpus", "all"] if shutil.which("nvidia-smi") else []
    done = _called([builder, "run", "-d", *gpus, "-p", f"127.0.0.1:{port}:80", "--name", tag, tag], 600)
    if done.returncode:
        raise UserError(f"{builder} does not start the image: {last_words(done.stderr)}")

    def ended() -> str | None:
        state = _called([builder, "inspect", "-f", "{{.State.Running}}", tag], 60)
        if state.stdout.strip() == "true":
            return None
        log = _called([builder, "logs", "--tail", "20", tag], 60)
        return last_words(log.stdout + log.stderr)

    def memory() -> float | None:
        said = _called([builder, "stats", "--no-stream", "--format", "{{.MemUsage}}", tag], 60).stdout
        match = re.match(r"\s*([\d.]+)\s*([kMG]?i?B)", said)
        return float(match[1]) * _UNITS[match[2].lower()] if match else None

    try:
        yield Running(f"http://127.0.0.1:{port}", ended, memory)
    finally:
        _called([builder, "rm", "-f", tag], 120)


def remove(builder: str, tags: list[str]) -> None:
    """Removes images that were built for the check; the layers stay in the builder's cache."""
    _called([builder, "rmi", "-f", *tags], 120)


def _called(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Runs a command and returns what it said; a failure is a return code of its own."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return subprocess.CompletedProcess(command, 1, "", str(e))
