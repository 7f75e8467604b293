"""Damages files at random, and runs what reads them in a process of its own, with its outcome, seconds and memory.

A reader of a file that comes from outside either reads it or raises a UserError of one line. Whatever else it does is
a fault: another exception, a crash, more than 10 s, or more memory than twice the file and 0.5 GB. The seconds are
those of the processor: what else a machine computes makes every reader wait, and says nothing about this one. A reader
that waits without computing is found by the clock, after some times as long.
"""

import copy
import gc
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from lit_gpt.errors import UserError

FUZZ_SECONDS = float(os.environ.get("LIT_GPT_FUZZ_SECONDS", "2"))
"""How long each of the tests that draw damaged files goes on."""
FUZZ_SEED = os.environ.get("LIT_GPT_FUZZ_SEED", "0")
"""What decides which files they draw."""
MAX_SECONDS = 10.0
"""Seconds of the processor that a reader may take, and its children that have ended."""
PATIENCE = 3.0
"""Times as many seconds by the clock after which a reader hangs."""
LONGEST_MESSAGE = 1_000
"""Number of characters that a message to the user may have, whatever the file holds."""
ODD = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, -(2**70), 1e400, -1e400, float("nan"), 0.5, "", "x", "x" * 99_999,
    "\0", "../../outside", [], {}, [[]], [None], {"": None}, {"a": {}}, list(range(1_000)),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of reading a file."""

    kind: str
    """read, refused (by a UserError or an OSError of one line), or a fault: exception, crash, hang, memory, message."""
    text: str
    """The message of a refusal, or the traceback."""
    seconds: float
    n_bytes: int
    """Memory that the process took in addition to what it had at its start."""

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("read", "refused")


def outcome_of(
    read: Callable[[], object], file_bytes: int = 0, max_seconds: float = MAX_SECONDS, patience: float = PATIENCE
) -> Outcome:
    """Returns what `read()` does in a forked process, which is killed after `max_seconds` of the processor.

    Args:
        file_bytes: size of the file that is read; twice as much memory and 0.5 GB are allowed.
        patience: times `max_seconds` that the process may take by the clock.
    """
    sys.stdout.flush(), sys.stderr.flush()
    readable, writable = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(readable)
        _child(read, writable)
    os.close(writable)
    said, hangs = b"", False
    while True:
        left = max_seconds * patience - (time.monotonic() - started)
        computed = _processor_seconds(pid)
        if left <= 0 or computed > max_seconds:
            hangs = True
            os.kill(pid, signal.SIGKILL)
            break
        if not select.select([readable], [], [], min(left, max(max_seconds - computed, 0.05)))[0]:
            continue
        if not (piece := os.read(readable, 65_536)):
            break
        said += piece
    os.close(readable)
    _, status, used = os.wait4(pid, 0)
    clock, seconds = time.monotonic() - started, used.ru_utime + used.ru_stime
    if hangs or seconds > max_seconds:
        return Outcome("hang", f"still reading after {seconds:.0f} s of the processor, {clock:.0f} s in all", clock, 0)
    if status or not said:
        return Outcome("crash", f"the process ended with {os.waitstatus_to_exitcode(status)}", clock, 0)
    kind, text, n_bytes = json.loads(said)
    if kind == "refused" and (len(text) > LONGEST_MESSAGE or "\n" in text.strip()):
        kind = "message"
    if kind in ("read", "refused") and n_bytes > 2 * file_bytes + 2**29:
        kind, text = "memory", f"{n_bytes / 1e9:.2f} GB for a file of {file_bytes:,} bytes; {text}"
    return Outcome(kind, text, clock, n_bytes)


def _processor_seconds(pid: int) -> float:
    """Returns what a process has used of the processor, and its children that have ended; 0 where nothing tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _child(read: Callable[[], object], writable: int) -> None:
    """Runs `read` and sends kind, text and memory; never returns."""
    gc.freeze()  # to look through what the parent has takes the child longer than a file does, and copies its memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    try:
        read()
        kind, text = "read", ""
    except (UserError, OSError) as e:
        kind, text = "refused", str(e)
    except BaseException:
        kind, text = "exception", traceback.format_exc()[-3_000:]
    n_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    os.write(writable, json.dumps([kind, text[:10_000], n_bytes]).encode())
    os._exit(0)


def mutated(value: Any, random: Random, odd: tuple[Any, ...] = ODD) -> str:
    """Returns the text of a JSON value with one to three places changed: another value, a lost or a doubled key."""
    places = list(_places(value))
    value = json.loads(json.dumps(value))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        *path, last = random.choice(places) if places else (None,)
        holder = value
        try:
            for key in path:
                holder = holder[key]
            holder[last]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took it away
        if not isinstance(holder, dict | list):
            continue  # a text that took its place
        if isinstance(holder, dict) and random.random() < 0.15:
            del holder[last]
        elif isinstance(holder, dict) and random.random() < 0.1:
            holder[str(last) + "_"] = holder.pop(last)
        else:
            holder[last] = copy.deepcopy(random.choice(odd))
    text = json.dumps(value)
    if random.random() < 0.03:
        depth = random.choice((1_000, 100_000))
        text = (
            text.replace("null", "[" * depth + "]" * depth, 1) if "null" in text else "[" * depth + text + "]" * depth
        )
    return text


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """Yields the path of keys and indices to every value inside a JSON value, at most 50 a list."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:50]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def flipped(data: bytes, random: Random, end: int | None = None) -> bytes:
    """Returns the bytes with one to four bits changed before byte `end`, or cut short, or with some bytes more."""
    end = min(end or len(data), len(data))
    kind = random.random()
    if kind < 0.1:
        return data[: random.randrange(len(data) + 1)]
    if kind < 0.15:
        return data + random.randbytes(random.choice((1, 7, 4_096)))
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 4))):
        position = random.randrange(end)
        if random.random() < 0.2:  # a whole little-endian number
            wide = random.choice((4, 8))
            number = random.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**64 - 1)) % 2 ** (8 * wide)
            changed[position : position + wide] = number.to_bytes(wide, "little")
        else:
            changed[position] ^= 1 << random.randrange(8)
    return bytes(changed)


def with_content(path: Path, content: bytes | str) -> Path:
    """Writes a file, and returns its path."""
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return path
