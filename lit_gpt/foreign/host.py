"""The process in which foreign code runs: it makes objects and calls their methods, one request after the other.

A request is a pickle of ours. A reply is JSON or bytes, for what foreign code may have written is only ever parsed.
"""

import contextlib
import importlib
import json
import os
import pickle
import signal
import struct
import threading
import time
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None

LENGTH = struct.Struct("<Q")
"""The number of bytes of a message, which stands before it."""
BYTES = b"\0"
"""What a reply begins with that is bytes, and no JSON."""


def main(*modules: str) -> None:
    """Answers requests until the other process closes the pipe; what foreign code prints goes nowhere.

    Args:
        modules: what is imported before the first answer, an empty message.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the other process, and with it the pipe
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    for module in modules:
        importlib.import_module(module)
    objects: dict[int, Any] = {}
    _send(replies, b"")
    while header := requests.read(LENGTH.size):
        request = requests.read(LENGTH.unpack(header)[0])
        _send(replies, reply_to(request, objects))


def _send(replies: int, reply: bytes) -> None:
    """Writes a message with its length before it."""
    message = memoryview(LENGTH.pack(len(reply)) + reply)
    while message:
        message = message[os.write(replies, message) :]


def _watch(parent: int) -> None:
    """Ends this process when the one that started it has ended, for a call may go on long after that."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def reply_to(request: bytes, objects: dict[int, Any]) -> bytes:
    """Returns the reply to a request: BYTES and the value if that is bytes, else, as JSON, ["ok", value] or
    ["user" | "memory" | "raised", text of the exception].

    Args:
        objects: those that were made before, by key.
    """
    folder, dropped, key, target, args, n_bytes, cpu_seconds = pickle.loads(request)
    with contextlib.suppress(OSError):
        os.chdir(folder)  # what paths among the arguments are relative to
    for old in dropped:
        objects.pop(old, None)
    _allow(n_bytes, cpu_seconds)
    try:
        if ":" in target:
            module, _, name = target.partition(":")
            objects[key] = getattr(importlib.import_module(module), name)(*args)
            value = None
        else:
            value = getattr(objects[key], target)(*args)
        return BYTES + value if isinstance(value, bytes) else json.dumps(["ok", value]).encode()
    except UserError as e:
        found = ["user", str(e)]
    except MemoryError:
        found = ["memory", ""]
    except BaseException as e:  # foreign code may raise anything; pyo3's panics are no Exceptions
        found = ["raised", f"{type(e).__name__}: {e}"[:10_000] if not str(e) else str(e)[:10_000]]
    _allow(n_bytes, cpu_seconds)
    return json.dumps(found).encode()


def _allow(n_bytes: int, cpu_seconds: int) -> None:
    """Lets the process take so many bytes and seconds more than it has taken; where a system has no such limit, none.

    The time is a second guard: it ends a process that nobody waits for any more.
    """
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + cpu_seconds
    _limit(resource.RLIMIT_CPU, seconds)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except (OSError, IndexError, ValueError):
        return
    _limit(resource.RLIMIT_DATA, pages * resource.getpagesize() + n_bytes)


def _limit(kind: int, most: int) -> None:
    """Sets a soft limit, as far as the hard one lets it."""
    assert resource is not None
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
