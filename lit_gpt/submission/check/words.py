"""Reads the commands of a train.sh, and asks the scripts of a submission whether they take their arguments."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lit_gpt.errors import one_line

_STANDS_FOR = {'"$max_time"': "01:00:00"}
"""What a variable of the script is taken for."""
_ASKING = """
import runpy, sys
from pathlib import Path
import lit_gpt.cli.start as start
from lit_gpt.errors import UserError
def run(main, *args, **kwargs):
    start.parse(main, sys.argv[1:])
import lit_gpt.cli
lit_gpt.cli.run = run
try:
    runpy.run_path(sys.argv.pop(1), run_name="__main__")
except UserError as e:
    sys.exit(f"error: {e}")
"""
"""Program in which a script reads its arguments, with its own library, and does nothing else."""


def commands_of(text: str) -> Iterator[list[str]]:
    """Yields the Python commands of a script, as words after `python`."""
    for line in text.replace("\\\n", " ").splitlines():
        for variable, value in _STANDS_FOR.items():
            line = line.replace(variable, value)
        if re.match(r"\s*python3? ", line):
            yield shlex.split(line)[1:]


def misfit(script: Path, words: list[str], folder: Path) -> str | None:
    """Returns why a script does not take its arguments, None if it does.

    Args:
        folder: where the script runs.
    """
    program = [sys.executable, "-c", _ASKING, str(script.resolve()), *words]
    env = {**os.environ, "PYTHONPATH": str(script.resolve().parent.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(program, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if not done.returncode:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
    return one_line(lines[-1].removeprefix("error: "), 300)
