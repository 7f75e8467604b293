"""The states of a run's files that stops leave: what there is before each operation, and which of them are the same."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

from crash_runs import TIMED


class Snapshots:
    """Keeps what a run would leave if it were stopped before an operation, as `kept/OPERATION/STATE`.

    Where the operation before it wrote a file, what a stop amid that leaves, half of the file, is kept, too.

    Args:
        out: the run's folder.
        known: states that are not kept again.
    """

    def __init__(self, out: Path, kept: Path, known: set[str]) -> None:
        self.out, self.kept, self.known = out, kept, known
        self.seen: dict[tuple[str, int, int, int], str] = {}

    def __call__(self, number: int, written: str) -> None:
        if not self.out.is_dir():
            return
        lines = {path: self._line(path) for path in sorted(self.out.rglob("*"))}
        self._keep(str(number), lines)
        torn = Path(written)
        if torn in lines and torn.stat().st_size:
            half = torn.read_bytes()[: torn.stat().st_size // 2]
            self._keep(f"{number}-torn", lines | {torn: f"{_name(self.out, torn)} {_content(torn.name, half)}"}, torn)

    def _line(self, path: Path) -> str:
        """Returns name and content of what is at `path`; what has not changed since the last time is not read again."""
        found = path.lstat()
        key = (str(path), found.st_ino, found.st_size, found.st_mtime_ns)
        if key not in self.seen or path.is_symlink():
            kind = os.readlink(path) if path.is_symlink() else "" if path.is_dir() else None
            self.seen[key] = _content(path.name, path.read_bytes()) if kind is None else kind
        return f"{_name(self.out, path)} {_without_numbers(self.seen[key])}"

    def _keep(self, name: str, lines: dict[Path, str], torn: Path | None = None) -> None:
        state = hashlib.sha256("\n".join(sorted(lines.values())).encode()).hexdigest()[:16]
        if state in self.known:
            return
        self.known.add(state)
        copy = self.kept / name / state
        shutil.copytree(self.out, copy, symlinks=True)
        if torn is not None:
            os.truncate(copy / torn.relative_to(self.out), torn.stat().st_size // 2)


def _name(out: Path, path: Path) -> str:
    return _without_numbers(str(path.relative_to(out)))


def _without_numbers(text: str) -> str:
    """Returns a name without what is another for each process."""
    return re.sub(r"\.\d+((\.old)?\.tmp)", r"\1", re.sub(r"tmp\w{8}", "tmp", text))


def _content(name: str, content: bytes) -> str:
    """Returns what is in a file, without what no two runs have in common: times, and numbers of processes."""
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            members = zipfile.ZipFile(io.BytesIO(content)).infolist()
            with_values = name != "state.pth"  # which has times
            return str([(m.filename.partition("/")[2], m.file_size, with_values and m.CRC) for m in members])
        if name.endswith(".json"):
            return _keys(json.loads(content))
        if name == "metrics.csv":
            whole, _, rest = content.decode().rpartition("\n")
            rows = csv.DictReader(whole.splitlines())
            return f"{[[x for name, x in row.items() if name not in TIMED] for row in rows]} {len(rest) > 0}"
    except ValueError:
        pass  # half a file
    return f"{len(content) > 0} {content.rstrip().endswith(b'</html>')}"


def _keys(value: object) -> str:
    """Returns the keys of a JSON value, and the steps that it counts."""
    if isinstance(value, dict):
        return str([(k, x if k in ("step", "best") else _keys(x)) for k, x in sorted(value.items())])
    return type(value).__name__
