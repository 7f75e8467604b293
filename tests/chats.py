"""Chats with a tiny model, in this process and in a terminal of their own."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from conftest import ROOT
from runs import run_of

from lit_gpt.args import ChatArgs
from lit_gpt.chat.commands import obey
from lit_gpt.chat.opening import open_voices
from lit_gpt.chat.session import Session
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import save_run
from lit_gpt.checkpoints.trained import save_trained, trained_path
from lit_gpt.fabric import make_fabric
from lit_gpt.methods import METHODS, trained_parameters
from lit_gpt.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ENDS = tuple(range(0, 320, 12))
"""Tokens that end an answer of the tiny model besides </s>, which it hardly ever writes."""


def chat(folder, *, ends=ENDS, style=None, run=None, compare=False, **args):
    """Returns a chat with the checkpoint in a folder."""
    voices = open_voices(make_fabric(), Tokenizer(folder), folder, run, style=style, compare=compare)
    for voice in voices:
        voice.end_ids = ends
    return Session(voices, replace(ChatArgs(max_new_tokens=24), **args))


def say(session, *messages):
    """Says what a user types, and returns the latest reply."""
    for message in messages:
        if not obey(session, message):
            session.ask(message)
    return session.replies[-1] if session.replies else None


def save_run_of(method, checkpoint, folder):
    """Writes a run of a method that is far from its base, and returns its folder."""
    fabric = make_fabric("32-true")
    model, digest = load_base(fabric, checkpoint)
    record = run_of(method)
    if "adapter_start_layer" in record.method_args:  # the model has two layers
        record.method_args["adapter_start_layer"] = 1
    METHODS[method].inject(model, METHODS[method].args(**record.method_args))
    torch.manual_seed(0)
    for parameter in trained_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    folder.mkdir(parents=True)
    save_trained(model, trained_path(folder, method))
    save_run(replace(record, base_digest=digest, prompt_style="alpaca", data={"end_ids": [7]}), folder)
    return folder


def _at_a_terminal():
    """Makes standard input the terminal of this process; ctrl-C reaches it even where whoever tests ignores that."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has what it starts in the background ignore it


class Screen:
    """A script in a terminal of its own, and what it showed there.

    Args:
        out: a file that the answers go to instead.
    """

    def __init__(self, *argv, cwd, env=None, columns=100, out=None):
        self.keys, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(cwd / "state"), **(env or {})}
        environment.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / argv[0]), *map(str, argv[1:])], cwd=cwd, env=environment,
            stdin=side, stdout=out or side, stderr=side, start_new_session=True,
            preexec_fn=_at_a_terminal,
        )  # fmt: skip
        os.close(side)
        self.shown, self.at = "", 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.keys)

    def type(self, text):
        """Types a text; at a prompt, once the script waits: readline loses a ctrl-C between its prompt and its wait."""
        if self.shown.endswith("> "):
            self._settle()
        os.write(self.keys, text.encode())

    def until(self, pattern, seconds=60):
        """Reads on until a pattern comes; returns what was shown since the last one."""
        end, found = time.monotonic() + seconds, None
        while not (found := re.compile(pattern, re.DOTALL).search(self.shown, self.at)):
            if time.monotonic() > end or not self._read():
                raise AssertionError(f"no {pattern!r} in {self.shown[self.at :]!r}")
        start, self.at = self.at, found.end()
        return self.shown[start : self.at]

    def interrupt(self, pattern, times=3, seconds=15):
        """Types ctrl-C until a pattern comes: one that meets the prompt just as it is shown may be lost, see `type`."""
        for _ in range(times):
            self.type("\x03")
            with suppress(AssertionError):
                return self.until(pattern, seconds)
        raise AssertionError(f"no {pattern!r} after {times} ctrl-C in {self.shown[self.at :]!r}")

    def ended(self, seconds=60):
        """Reads to the end, and returns the exit code."""
        end = time.monotonic() + seconds
        while self._read():
            if time.monotonic() > end:
                raise AssertionError(f"the script goes on; it showed {self.shown[self.at :]!r}")
        return self.process.wait(timeout=10)

    def _settle(self, seconds=2):
        """Waits until the script sleeps for 50 ms, where the system says so, or for some seconds while it is busy."""
        state, end, n_asleep = Path(f"/proc/{self.process.pid}/stat"), time.monotonic() + seconds, 0
        while state.exists() and n_asleep < 10 and time.monotonic() < end:
            n_asleep = n_asleep + 1 if state.read_text().rpartition(") ")[2][0] in "SZ" else 0
            time.sleep(0.005)

    def _read(self):
        """Reads what there is; returns False at the end."""
        if not select.select([self.keys], [], [], 1)[0]:
            return True
        try:
            data = os.read(self.keys, 65536)
        except OSError:  # the other side is closed
            return False
        self.shown += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)
