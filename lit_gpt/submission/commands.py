"""The commands that repeat a run, from its own record: prepare the data, finetune with the same arguments."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.args import TrainArgs, ValidationArgs
from lit_gpt.args.command import written
from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.args.preferences import PreferenceArgs
from lit_gpt.args.rollouts import CheckerArgs
from lit_gpt.checkpoints.runs import Run
from lit_gpt.data.store import META
from lit_gpt.errors import UserError
from lit_gpt.methods import METHODS
from lit_gpt.records import parse_yaml, read_object
from lit_gpt.submission.toolkit import TOOLKIT

PREPARED = "prepared"
"""Folder of prepared data in the training image."""
DATA = "data"
"""Folder of a submission with files of rows."""
_FILES = ("json_path", "csv_path", "data_file", "validation_file")
"""Flags of the prepare scripts that name a file."""
_PLACES = ("checkpoint_dir", "destination_path", "overwrite")
"""Flags that are set anew."""
_OWN_TASK = ("best_task_data", "best_task_path")
_FROM_HERE = ("sft_run", "checker_file")
"""Flags of training that name another run, or a file of code."""
_KINDS = {"preference": (PreferenceArgs,), "grpo": (GrpoArgs, CheckerArgs)}
"""Script that takes any method -> what else it has arguments of."""
_WITHOUT = "or leave the training out of the submission with --train_image false"
_NOT_REPEATED = {"max_time": None, "logger": "csv", "compile": None}
"""Arguments of training that the image sets in its own way: value there, None for none."""


@dataclass
class Repetition:
    """What repeats a run."""

    prepare: list[list[str]] = field(default_factory=list)
    """Commands that prepare the data, in order, as words after `python`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Values of the finetune script's flags."""
    files: dict[str, Path] = field(default_factory=dict)
    """Files of rows: name in the submission -> where it is now."""


def repetition_of(run: Run, checkpoint: str, prepare_command: str | None = None) -> Repetition:
    """Returns what repeats a run.

    Args:
        checkpoint: folder of the base, as the commands name it.
        prepare_command: what prepared the data, where its record does not say.

    Raises:
        UserError: the record does not say all it takes, or what it names is not there any more.
    """
    found = Repetition(config=_config(run))
    command = shlex.split(prepare_command) if prepare_command else run.data.get("command")
    _prepare(found, command, Path(run.data.get("folder") or "data"), checkpoint=checkpoint, name="data")
    return found


def config_text(repetition: Repetition) -> str:
    """Returns the values of the finetune script's flags as a file that its --config takes."""
    return yaml.safe_dump(repetition.config, sort_keys=False, allow_unicode=True, width=10**6)


def _config(run: Run) -> dict[str, Any]:
    """Returns the values of the flags with which a run was started; those that are not set are left out."""
    if "from" in run.training:
        raise UserError(
            f"the run was made of an adapter ({run.training['from']}), which no command repeats; {_WITHOUT}"
        )
    for name in _OWN_TASK:
        if run.training.get(name):
            raise UserError(f"the run chose its checkpoint by your own --{name} {run.training[name]}, which the image "
                            f"would not have; train without it, {_WITHOUT}")  # fmt: skip
    for name in _FROM_HERE:
        if run.training.get(name):
            raise UserError(f"the run needed --{name} {run.training[name]}, which the image would not have; {_WITHOUT}")
    kinds = (TrainArgs, ValidationArgs, *_KINDS.get(run.script, ()))
    known = [f.name for kind in kinds for f in fields(kind)] + ["seed", "precision"]
    values = {name: run.training[name] for name in known if run.training.get(name) is not None}
    values |= {name: value for name, value in _NOT_REPEATED.items() if name in values}
    flags = {f.name for f in fields(METHODS[run.method].args)} - {"ranks", "whole"}
    own = {name: x for name, x in run.method_args.items() if name in flags}
    own |= {"method": run.method} if run.script in _KINDS else {}
    return {name: x for name, x in {**own, "quantize": run.quantize, **values}.items() if x is not None}


def _prepare(found: Repetition, command: list[str] | None, folder: Path, *, checkpoint: str, name: str) -> None:
    """Adds the commands that prepare a data set to what repeats a run, those of a mixture's sources before its own."""
    if not command:
        raise UserError(f"{folder} does not say how it was prepared; prepare it again, pass --prepare_command "
                        f'"scripts/prepare_json.py --json_path ...", {_WITHOUT}')  # fmt: skip
    words = [word for word in command if word != "python"]
    script, flags = words[0], dict(_pairs(words[1:]))
    if not script.startswith("scripts/prepare_"):
        raise UserError(f"{folder} was prepared by {script}, which is no script of this toolkit; {_WITHOUT}")
    for flag in _FILES:
        if flag in flags and "://" not in flags[flag]:
            flags[flag] = _file(found, Path(flags[flag]), f"--{flag} of {folder}")
    if "sources" in flags:
        flags["sources"] = written(dict(_sources(found, flags["sources"], folder, checkpoint)))
    flags = {flag: value for flag, value in flags.items() if flag not in _PLACES}
    flags |= {"checkpoint_dir": checkpoint, "destination_path": f"{PREPARED}/{name}"}
    found.prepare.append([f"{TOOLKIT}/{script}", *(word for flag, x in flags.items() for word in (f"--{flag}", x))])


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yields flag and value of a command; both stand in one word, or in two."""
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        yield flag.removeprefix("--"), value if equals else next(rest, "true")


def _file(found: Repetition, path: Path, what: str) -> str:
    """Returns the name that a file has in the submission, and notes that it is to be packed."""
    if not path.is_file():
        raise UserError(f"{path} ({what}) is not there: the training image needs it; put it back, {_WITHOUT}")
    name = f"{DATA}/{path.name}"
    n = 1
    while found.files.get(name, path) != path:
        n += 1
        name = f"{DATA}/{n}-{path.name}"
    found.files[name] = path
    return name


def _sources(found: Repetition, text: str, folder: Path, checkpoint: str) -> Iterator[tuple[str, str]]:
    """Yields the sources of a mixture by name: files of the submission, or data that the image prepares first."""
    sources = parse_yaml(text, f"--sources of {folder}", "prepare the mixture again")
    for name, value in sources.items():
        path = Path(str(value))
        if path.is_dir():
            meta = read_object(path / META, "prepare it again")
            _prepare(found, meta.get("command"), path, checkpoint=checkpoint, name=str(name))
            yield str(name), f"{PREPARED}/{name}"
        else:
            yield str(name), _file(found, path, f"--sources of {folder}")


def shell(words: list[str], quote: Callable[[str], str] = shlex.quote) -> str:
    """Returns a command of the toolkit as a line of a shell script, flags below each other where they are many."""
    parts = [f"python {quote(words[0])}"]
    for i in range(1, len(words), 2):
        parts.append(" ".join(map(quote, words[i : i + 2])))
    return " \\\n    ".join(parts)
