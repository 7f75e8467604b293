"""Objects of foreign code, which live in a process of their own and are called within limits of time and memory.

A tokenizer's expressions and a chat template are programs that came with a checkpoint, and the libraries that run them
are native code: they can neither be trusted to end nor be stopped within a process. One process serves all objects; it
is started with the first one, and anew after a limit ended it.
"""

import atexit
import contextlib
import itertools
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.foreign.host import BYTES, LENGTH, reply_to

_LIBRARY = Path(__file__).resolve().parents[2]
_PROGRAM = "import sys; from lit_gpt.foreign.host import main; main(*sys.argv[1:])"
_HAS_PROCESSES = find_spec("resource") is not None
"""Whether foreign code gets a process and limits: not on Windows, which lacks the limits and waiting for pipes."""
_START_SECONDS = 60
_SLICE = 0.5
"""Seconds that are waited at once; a process that was stopped meanwhile loses one of them, not its whole time."""
_PATIENCE = 5
"""Times its limit that a process may take by the clock, if it had less of the processor: others are busy."""


class LimitError(UserError):
    """Foreign code took more time or memory than it may, or ended its process."""


class RaisedError(Exception):
    """Foreign code raised an exception; the text is that exception's."""


@dataclass(frozen=True)
class Limits:
    """What a call may take."""

    seconds: float
    n_bytes: int
    """Memory in addition to what the process has when the call begins."""


class _Host:
    """The process in which foreign code runs."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        path = os.pathsep.join(filter(None, (str(_LIBRARY), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            bufsize=0,
            start_new_session=True,
        )
        assert self.process.stdin and self.process.stdout
        self.requests, self.replies = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.has_started = False

    def require_started(self) -> None:
        """Waits for the process, which says when it is ready.

        Raises:
            UserError: it does not start.
        """
        if self.has_started:
            return
        try:
            self.has_started = self._receive(_START_SECONDS) is not None
        except EOFError:
            self.has_started = False
        if not self.has_started:
            code = self.end()
            raise UserError(f"the process for tokenizers and chat templates does not start ({sys.executable}, {code})")

    def ask(self, request: bytes, seconds: float) -> bytes | None:
        """Returns the reply to a request; None if there is none within the time.

        Raises:
            EOFError: the process has ended.
        """
        message = memoryview(LENGTH.pack(len(request)) + request)
        try:
            while message:
                message = message[os.write(self.requests, message) :]
        except OSError as e:
            raise EOFError from e
        return self._receive(seconds)

    def _receive(self, seconds: float) -> bytes | None:
        """Returns the next message; None if there is none within the time; raises EOFError at the end."""
        n_slices, begun = 0, _processor_seconds(self.process.pid)
        reply, wanted = bytearray(), LENGTH.size
        while len(reply) < wanted:
            while not select.select([self.replies], [], [], _SLICE)[0]:
                n_slices += 1
                waited = n_slices * _SLICE
                if waited > seconds and (
                    waited > _PATIENCE * seconds or _processor_seconds(self.process.pid) - begun >= seconds
                ):
                    return None
            piece = os.read(self.replies, 1 << 20)
            if not piece:
                raise EOFError
            reply += piece
            if wanted == LENGTH.size and len(reply) >= wanted:
                wanted += LENGTH.unpack(reply[: LENGTH.size])[0]
        return bytes(reply[LENGTH.size :])

    def end(self) -> int:
        """Ends the process and returns its exit code, negative for a signal."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()
        return self.process.wait()

    def leave(self) -> int:
        """Returns the exit code of a process that ends by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        return self.end()


def _processor_seconds(pid: int) -> float:
    """Returns the processor time that a process has had; where the system does not tell, the clock's."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _NoHost:
    """A stand-in for the process where there can be none: foreign code runs in this one, without limits."""

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}

    def require_started(self) -> None:
        """Has nothing to wait for."""

    def ask(self, request: bytes, seconds: float) -> bytes:
        """Returns the reply to a request."""
        return reply_to(request, self.objects)

    def end(self) -> int:
        """Forgets the objects."""
        self.objects.clear()
        return 0

    leave = end


class _Hosts:
    """The one process for a kind of foreign code, if it has been needed."""

    def __init__(self, *modules: str) -> None:
        self.modules = modules
        self.forget()

    def forget(self) -> None:
        """Begins anew, as a forked process must: the pipes are its parent's."""
        self.lock = threading.RLock()
        self.host: _Host | _NoHost | None = None
        self.dropped: list[int] = []

    def start(self) -> "_Host | _NoHost":
        """Returns the process, which is started if need be and may not be ready yet."""
        if self.host is None:
            self.host = _Host(self.modules) if _HAS_PROCESSES else _NoHost()
        return self.host

    def running(self) -> "_Host | _NoHost":
        """Returns the process once it is ready."""
        host = self.start()
        try:
            host.require_started()
        except BaseException:
            self.end()
            raise
        return host

    def end(self) -> int:
        """Ends the process at once and returns its exit code."""
        host, self.host = self.host, None
        return host.end() if host else 0

    def leave(self) -> int:
        """Returns the exit code of the process, which has ended by itself."""
        host, self.host = self.host, None
        return host.leave() if host else 0


_HOSTS = {"tokenizers": _Hosts("tokenizers"), "templates": _Hosts("jinja2.sandbox", "jinja2.ext")}
"""One process for each kind of foreign code, so that both can work at the same time."""
_keys = itertools.count()
for _one in _HOSTS.values():
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_one.forget)
    atexit.register(_one.end)


def start(host: str) -> None:
    """Starts the process for a kind of foreign code, and does not wait for it: it gets ready while this one goes on.

    Args:
        host: tokenizers or templates.
    """
    with _HOSTS[host].lock:
        _HOSTS[host].start()


class Remote:
    """An object that is made and called in the process for foreign code.

    Args:
        what: how messages name it, such as "the tokenizer tokenizer.json".
        host: kind of foreign code that it is: tokenizers or templates.
        factory: module and name of what makes it, such as "package.module:Class"; its arguments follow.

    Raises:
        LimitError: making it takes more than `limits`, or ends the process.
        RaisedError: making it raises an exception other than a UserError, which is raised as it is.
    """

    def __init__(self, what: str, factory: str, *args: Any, limits: Limits, host: str = "tokenizers") -> None:
        self._hosts = _HOSTS[host]
        self.what, self._factory, self._args, self._limits = what, factory, args, limits
        self._key = next(_keys)
        self._folder = os.path.abspath(os.curdir)  # what paths among the arguments are relative to
        self._host: _Host | _NoHost | None = None
        weakref.finalize(self, self._hosts.dropped.append, self._key).atexit = False
        with self._hosts.lock:
            self._make()

    def call(self, method: str, *args: Any, limits: Limits, doing: str) -> Any:
        """Returns what a method returns, as JSON holds it, or the bytes that it returns.

        Args:
            doing: what the call does, for messages, such as "for a text of 12 characters".

        Raises:
            LimitError: the call takes more than `limits`, or ends the process.
            RaisedError: the method raises an exception other than a UserError, which is raised as it is.
        """
        with self._hosts.lock:
            if self._host is not self._hosts.running():
                self._make()
            return self._ask(method, args, limits, doing)

    def _make(self) -> None:
        """Makes the object in the process that is running now."""
        host = self._hosts.running()
        self._ask(self._factory, self._args, self._limits, "when it is loaded")
        self._host = host

    def _ask(self, target: str, args: tuple[Any, ...], limits: Limits, doing: str) -> Any:
        """Returns the value of a reply, or raises the error that it holds."""
        dropped, self._hosts.dropped[:] = list(self._hosts.dropped), []
        cpu_seconds = int(limits.seconds * 2 + 10) * (os.cpu_count() or 1)
        request = pickle.dumps(
            (self._folder, dropped, self._key, target, args, limits.n_bytes, cpu_seconds), protocol=5
        )
        try:
            reply = self._hosts.running().ask(request, limits.seconds)
        except EOFError:
            raise LimitError(f"{self.what} {_death(self._hosts.leave(), limits)} {doing}") from None
        except BaseException:  # Ctrl-C: the reply would be taken for that to the next request
            self._hosts.end()
            raise
        if reply is None:
            self._hosts.end()
            raise LimitError(f"{self.what} takes more than {limits.seconds:.0f} s {doing}")
        if reply.startswith(BYTES):
            return memoryview(reply)[len(BYTES) :]
        kind, value = json.loads(reply)
        if kind == "memory":
            raise LimitError(f"{self.what} takes more than {limits.n_bytes / 1e9:.1f} GB of memory {doing}")
        if kind == "user":
            raise UserError(value)
        if kind == "raised":
            raise RaisedError(value)
        return value


def _death(code: int, limits: Limits) -> str:
    """Returns in words how a process ended by itself."""
    if hasattr(signal, "SIGXCPU") and code == -signal.SIGXCPU:
        return f"takes more than {limits.seconds:.0f} s"
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    why = f", perhaps for want of memory: {limits.n_bytes / 1e9:.1f} GB are allowed" if code == -signal.SIGABRT else ""
    return f"ends the process that runs it ({name}{why})"
