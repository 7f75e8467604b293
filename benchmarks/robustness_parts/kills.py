"""Kills runs of every method at random moments, resumes them, and compares them bit for bit with runs left alone."""

import csv
import os
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from damage import Outcome
from robustness_parts.campaign import Case, Section
from robustness_parts.material import METHODS, TRAIN, Material, calling, flags_of_method

_FLAGS = (*TRAIN, "--epochs", 3)
_SETTINGS = {
    method: (method, (*flags_of_method(method), *(("--lora_dropout", 0.2) if method == "lora" else ())))
    for method in METHODS
}
_SETTINGS["lora-merge"] = ("lora", ("--lora_dropout", 0.2, "--merge", "true", "--average_last", 2))
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_MOST_SECONDS = 120.0
_TIMED = ("seconds", "tokens_per_sec", "iter_time_ms", "of_peak", "memory_gb")
"""Columns of metrics.csv that no two runs share."""


def sections(material: Material) -> list[Section]:
    """Returns the section of killed runs."""

    def prepare() -> None:
        for setting in _SETTINGS:
            _whole(material, setting)

    return [Section("kills", _none, prepare, lambda random, place: _killed(material, random, place))]


def _none(random: Random, place: Path) -> Case:
    raise NotImplementedError("a killed run is more than one reader")


def _whole(material: Material, setting: str) -> Path:
    """Returns the folder of a run of a setting that was left alone, and in seconds.txt what it took."""
    checkpoint, data = material.lit(), material.data()
    method, flags = _SETTINGS[setting]

    def make(folder: Path) -> None:
        started = time.monotonic()
        words = ("--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", folder / "out", *_FLAGS, *flags)
        calling(f"finetune/{method}.py", *words, cwd=folder)()
        (folder / "seconds.txt").write_text(str(time.monotonic() - started))

    return material.get(f"whole-{setting}", make)


def _killed(material: Material, random: Random, place: Path) -> Outcome:
    """Kills or stops a run one to three times, lets it end, and compares."""
    setting = random.choice(list(_SETTINGS))
    whole = _whole(material, setting)
    method, flags = _SETTINGS[setting]
    words = ("--checkpoint_dir", material.lit(), "--data_dir", material.data(), "--out_dir", place / "out")
    call = calling(f"finetune/{method}.py", *words, *_FLAGS, *flags, "--resume", "true", cwd=place)
    started, whole_seconds, story = time.monotonic(), float((whole / "seconds.txt").read_text()), [setting]
    for n in range(random.choice((1, 1, 2, 3)) + 1):
        pid = _start(call, place / "log.txt")
        if n == 0 or random.random() < 0.8:
            how, when = random.choice(_SIGNALS), random.choice(("any", "any", "save", "end"))
            _wait(when, pid, place / "out", seconds=random.uniform(0.05, 1) * whole_seconds, random=random)
            story.append(f"{how.name} ({when})")
            with suppress(ProcessLookupError):
                os.kill(pid, how)
        code = _end_of(pid)
        if code is None:
            return Outcome("hang", f"{' '.join(story)}\n{_tail(place)}", time.monotonic() - started, 0)
        if code not in (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130):
            return Outcome("resume", f"{' '.join(story)}\n{_tail(place)}", time.monotonic() - started, 0)
    code = _end_of(_start(call, place / "log.txt"))
    seconds = time.monotonic() - started
    if code != 0:
        return Outcome("resume", f"{' '.join(story)}\n{_tail(place)}", seconds, 0)
    if wrong := difference(whole / "out", place / "out"):
        return Outcome("different", f"{' '.join(story)}: {wrong}", seconds, 0)
    return Outcome("read", " ".join(story), seconds, 0)


def _start(call: Callable[[], None], log: Path) -> int:
    """Starts a run in a forked process, whose output goes to a file; returns its id."""
    _flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        call()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            _flush()
        os._exit(code)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _wait(when: str, pid: int, out: Path, seconds: float, random: Random) -> None:
    """Waits for a moment of a run: some seconds, a save that has begun, or the last results."""
    end, pattern = time.monotonic() + 20, ".step-*.tmp" if when == "save" else "*.png"
    if when == "any":
        end = time.monotonic() + seconds
    where = out / "checkpoints" if when == "save" else out
    n = random.choice((1, 1, 2, 3))  # the first save, or a later one
    seen: set[str] = set()
    while time.monotonic() < end and len(seen) < n and _goes_on(pid):
        if when != "any":
            seen |= {p.name for p in where.glob(pattern)}
            if when == "end" and seen:
                break
        time.sleep(0.0005)
    if random.random() < 0.5:
        time.sleep(random.uniform(0, 0.03))


def _goes_on(pid: int) -> bool:
    """Returns whether a child has not ended; leaves its exit code to be asked for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _end_of(pid: int) -> int | None:
    """Waits for a child, and returns its exit code, or the signal below zero; kills it and returns None at last."""
    end = time.monotonic() + _MOST_SECONDS
    while _goes_on(pid):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _tail(place: Path) -> str:
    """Returns the end of what a run said."""
    return (place / "log.txt").read_text(errors="replace")[-3_000:]


def difference(whole: Path, out: Path) -> str | None:
    """Returns what differs between the results of two runs, but for what is timed; None if nothing does."""
    for path in sorted(whole.rglob("lit_model*.pth")):
        name = path.relative_to(whole)
        if name.parts[0] == "checkpoints":
            continue
        if not (out / name).is_file():
            return f"there is no {name}"
        if _members(out / name) != _members(path):
            return f"{name} differs"
    kept = [sorted(p.name for p in (folder / "checkpoints").iterdir()) for folder in (whole, out)]
    if kept[0] != kept[1]:
        return f"checkpoints are {kept[1]}, not {kept[0]}"
    if (whole / "best").exists() and os.readlink(whole / "best") != os.readlink(out / "best"):
        return f"best is {os.readlink(out / 'best')}, not {os.readlink(whole / 'best')}"
    rows = [_rows(folder / "metrics.csv") for folder in (whole, out)]
    if rows[0] != rows[1]:
        first = next((pair for pair in zip(*rows, strict=False) if pair[0] != pair[1]), ("", "its length"))
        return f"metrics.csv differs: {first[1]} instead of {first[0]}"
    missing = {p.name for p in whole.iterdir()} - {p.name for p in out.iterdir()}
    return f"there is no {sorted(missing)[0]}" if missing else None


def _members(path: Path) -> dict[str, bytes]:
    """Returns the content of each member of torch's archive; the folder in it has the name of a temporary file."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def _rows(path: Path) -> list[dict[str, str]]:
    """Returns the rows of metrics.csv without what is timed."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in _TIMED} for row in csv.DictReader(file)]
