"""Servers that are compared: each is a process, which sleeps while another one is measured."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CONTENDERS = {
    "ours": ("scripts", "bf16-true"),
    "ours fp32": ("scripts", "32-true"),
    "single": ("single", "bfloat16"),
    "single fp32": ("single", "float32"),
    "continuous": ("continuous", "bfloat16"),
    "continuous fp32": ("continuous", "float32"),
}
"""Name -> how it answers, and in which dtype."""


class Contender:
    """A server that runs; it sleeps until it is wanted.

    Args:
        ours, theirs: the model in our format, and in that of Hugging Face.
    """

    def __init__(self, name: str, ours: Path, theirs: Path, threads: int) -> None:
        kind, dtype = CONTENDERS[name]
        if kind == "scripts":
            command = [ROOT / "scripts" / "serve.py", "--checkpoint_dir", ours, "--precision", dtype, "--port", "0"]
        else:
            command = [Path(__file__).parent / "peers.py", kind, theirs, dtype]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *map(str, command)], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("Serving"):
            self.errors.seek(0)
            sys.exit(f"error: {name} does not serve\n{line}{self.errors.read()[-3000:]}")
        self.url = line.split()[-1]
        self.process.send_signal(signal.SIGSTOP)

    @contextmanager
    def awake(self) -> Iterator[str]:
        """Lets it run; yields its address."""
        self.process.send_signal(signal.SIGCONT)
        try:
            yield self.url
        finally:
            self.process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
