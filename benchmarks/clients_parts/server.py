"""Our server in a process of its own, as a user starts it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent.parent
_PATIENCE = 120
"""Seconds that the server may take to end."""


@contextmanager
def serving(checkpoint_dir: Path, *flags: str) -> Iterator[tuple[str, int]]:
    """Starts scripts/serve.py with a checkpoint and flags; yields its address and its process's id once it answers.

    Raises:
        RuntimeError: it does not start, or does not end well.
    """
    script = str(_ROOT / "scripts" / "serve.py")
    command = [sys.executable, script, "--checkpoint_dir", str(checkpoint_dir.resolve()), "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("Serving"):
                raise RuntimeError(f"the server did not start: {' '.join(command)}")
            yield line.split()[-1], process.pid
        finally:
            process.terminate()
            process.wait(_PATIENCE)
        if process.returncode:
            raise RuntimeError(f"the server ended with {process.returncode}")
