"""Local files in place of a task's data on the hub; the task's prompts and metrics stay.

`lm_eval` is imported inside the functions, so that the scripts' `--help` stays fast.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_gpt.args import EvalArgs
from lit_gpt.data.prepare.entries import read_objects
from lit_gpt.errors import UserError
from lit_gpt.evaluation.local.mmlu import is_mmlu, read_mmlu, rows_as_the_hubs
from lit_gpt.evaluation.names import leaves, resolve

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

Source = Path | dict[str, Path]
"""The file of the split that a task evaluates, or the file of each split by its name."""
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
_SUFFIXES = (".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class Examples:
    """The origin of the solved examples before the questions."""

    file: Path
    split: str
    """Split that the file holds."""
    own: str | None
    """The split from which the task itself would take the examples; None if it is `split`."""


# the files of each task


def local_files(args: EvalArgs, manager: "TaskManager", evaluated: set[str]) -> dict[str, Source]:
    """Returns the files of each task from --task_data; if two names hold a task, the narrower one decides.

    Raises:
        UserError: a file is missing, cannot serve all the tasks it is given to, or is for a task that is not evaluated.
    """
    files: dict[str, Source] = {}
    task_data = args.task_data or {}
    given = {name: _evaluated(name, manager, evaluated, args) for name in task_data}
    for name in sorted(given, key=lambda name: len(given[name])):
        missing = [task for task in given[name] if task not in files]
        files |= _sources(name, task_data[name], missing, manager)
    return files


def _evaluated(name: str, manager: "TaskManager", evaluated: set[str], args: EvalArgs) -> list[str]:
    """Returns the evaluated tasks that a name in --task_data stands for.

    Raises:
        UserError: none of its tasks is evaluated.
    """
    tasks = {leaf for n in resolve(name, manager) for leaf in leaves(n, manager)} & evaluated
    if not tasks:
        raise UserError(f"--task_data names {name!r}, which is not among --eval_tasks {', '.join(args.eval_tasks)}")
    return sorted(tasks)


def _sources(
    name: str, given: Path | Mapping[str, Path], tasks: list[str], manager: "TaskManager"
) -> dict[str, Source]:
    """Returns the files of each task, for one entry of --task_data.

    Raises:
        UserError: a missing file, or one that cannot serve all its tasks.
    """
    data_sets = {_data_set(task, manager) for task in tasks}
    if isinstance(given, Mapping) and (len(data_sets) > 1 or _names_tasks(name, given, manager)):
        return _by_task(name, given, tasks, manager)
    for path in given.values() if isinstance(given, Mapping) else [given]:
        if not path.exists():
            raise UserError(f"--task_data {name}: there is no {path}")
    if isinstance(given, Mapping):
        return {task: _checked_splits(task, dict(given), _splits(task, manager)) for task in tasks}
    if given.is_dir():
        return {task: _in_folder(given, task, _splits(task, manager), len(data_sets) == 1) for task in tasks}
    if len(data_sets) > 1:
        raise UserError(
            f"--task_data {name}: {given} is one file for {len(tasks)} tasks with questions of their own; "
            f"give a folder with {tasks[0]}.jsonl and so on, or a file for each: "
            f'--task_data "{{{tasks[0]}: FILE, {tasks[1]}: FILE}}"'
        )
    return dict.fromkeys(tasks, given)


def _names_tasks(name: str, given: Mapping[str, Any], manager: "TaskManager") -> bool:
    """Returns whether the keys of a mapping are tasks of a group (only one of which may be evaluated)."""
    members = {leaf for n in resolve(name, manager) for leaf in leaves(n, manager)}
    return len(members) > 1 and all(key in manager.task_index for key in given)


def _by_task(name: str, given: Mapping[str, Path], tasks: list[str], manager: "TaskManager") -> dict[str, Source]:
    """Returns the files of each task, for a mapping whose keys are tasks of a group.

    Raises:
        UserError: a key is not a task of the group.
    """
    found: dict[str, Source] = {}
    for member, path in given.items():
        within = [task for n in resolve(member, manager) for task in leaves(n, manager) if task in tasks]
        if not within:
            raise UserError(f"--task_data {name}: {member!r} is none of its {len(tasks)} tasks, e.g. {tasks[0]}")
        found |= _sources(member, path, within, manager)
    return found


def _data_set(task: str, manager: "TaskManager") -> tuple[str, ...]:
    """Returns the identity of a task's data set: equal for two tasks that ask about the same rows."""
    config = config_of(task, manager, resolve_func=False)
    path = config.get("dataset_path")
    return (task,) if path is None else (path, str(config.get("dataset_name")))


def config_of(task: str, manager: "TaskManager", resolve_func: bool = True) -> dict[str, Any]:
    """Returns a task's configuration from its YAML file, with included files merged in.

    Args:
        resolve_func: whether to import the task's functions; otherwise their names are kept.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index[task]
    if entry.yaml_path is None:
        return dict(entry.cfg or {})
    return load_yaml(entry.yaml_path, resolve_func=resolve_func)


def _splits(task: str, manager: "TaskManager") -> list[str]:
    """Returns the names of a task's splits: first the evaluated one, then those for solved examples by precedence."""
    config = config_of(task, manager, resolve_func=False)
    names = [config.get("test_split") or config.get("validation_split"), _own_examples(config)]
    names += [config.get("training_split"), config.get("validation_split")]
    return list(dict.fromkeys(name for name in names if name))


def _own_examples(config: dict[str, Any]) -> str | None:
    """Returns the split that lm-eval takes a task's solved examples from; None if the task spells them out."""
    examples = config.get("fewshot_config") or {}
    if split := examples.get("split") or config.get("fewshot_split"):
        return split
    if "samples" in examples:
        return None
    return config.get("training_split") or config.get("validation_split") or config.get("test_split")


def _checked_splits(task: str, given: dict[str, Path], splits: list[str]) -> dict[str, Path]:
    """Returns `given` after checking that it names files of the task's splits, with one for the evaluated split.

    Raises:
        UserError: it does not.
    """
    if wrong := [split for split in given if split not in splits]:
        raise UserError(f"--task_data {task}: {wrong[0]!r} is none of its splits, which are {', '.join(splits)}")
    if splits[0] not in given:
        raise UserError(f"--task_data {task}: there is no file for {splits[0]}, the split whose questions it asks")
    if folders := [path for path in given.values() if path.is_dir()]:
        raise UserError(f"--task_data {task}: {folders[0]} is a folder; name a file for each split")
    return given


def _in_folder(folder: Path, task: str, splits: list[str], alone: bool) -> Source:
    """Returns the files for `task` in a folder, found in one of the layouts that docs/evaluate.md lists.

    Args:
        splits: the result of `_splits`.
        alone: whether the folder is for one data set only, so that files may be named after their split alone.

    Raises:
        UserError: the folder has no file for the task.
    """
    for suffix in _SUFFIXES:
        if (path := folder / f"{task}{suffix}").is_file():
            return path
    subject = task.removeprefix("mmlu_")
    shapes = [[folder / task / split for split in splits]]
    shapes += [[folder / split for split in splits]] if alone else []
    shapes += [[folder / split / f"{subject}_{split}" for split in splits]]  # MMLU's own archive
    for stems in shapes:
        found = {split: path for split, stem in zip(splits, stems, strict=True) if (path := _with_suffix(stem))}
        if splits[0] in found:
            return found
    raise UserError(f"--task_data: {folder} has no {task}.jsonl, and no {task}/{splits[0]}.jsonl")


def _with_suffix(stem: Path) -> Path | None:
    """Returns the first existing file with this name and one of the known suffixes; None if there is none."""
    return next((path for suffix in _SUFFIXES if (path := stem.with_name(stem.name + suffix)).is_file()), None)


# tasks that read local files


def use_local_data(
    manager: "TaskManager", task: str, source: Source, num_fewshot: int | None, scratch: Path | None = None
) -> Examples | None:
    """Makes the task read local files instead of the hub; its name, version, prompts and metrics stay.

    Solved examples come from the file of another split, preferably the one that the task itself uses. If there is none,
    they come from the questions' own file, and lm-eval keeps each question out of its own examples.

    Args:
        num_fewshot: number of examples asked for; None stands for the task's own number.
        scratch: temporary folder for converted rows, needed until the task is loaded.

    Returns:
        The origin of the solved examples; None if the task shows none, or spells them out.

    Raises:
        UserError: a file's rows do not fit, or the task gets its data from Python code.
    """
    config = config_of(task, manager)
    if "class" in config or config.get("custom_dataset"):
        raise UserError(f"--task_data: {task} gets its data from Python code, which a file cannot replace")
    splits = _splits(task, manager)
    evaluated, own = splits[0], _own_examples(config)
    given = source if isinstance(source, Mapping) else {evaluated: source}
    shown = bool(own and n_shots(config.get("num_fewshot"), num_fewshot))
    split = next((s for s in splits[1:] if s in given), evaluated) if shown else None
    files = {s: given[s] for s in dict.fromkeys([evaluated, split or evaluated])}
    _check_rows(files, config)
    if is_mmlu(config):
        files = {s: rows_as_the_hubs(path, scratch) for s, path in files.items()}
    # which examples are drawn depends on the names of all splits, so splits that have a file keep their names
    named = {key: config.get(key) if config.get(key) in files else None for key in _SPLITS}
    if split in (evaluated, None):
        # lm-eval keeps a question out of its own examples only if both come from the test split
        named = {**dict.fromkeys(_SPLITS), "test_split": evaluated, "fewshot_split": split}
    config |= named | {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {s: str(path.resolve()) for s, path in files.items()}},
    }
    examples = config.get("fewshot_config") or {}
    if "split" in examples and examples["split"] not in files:
        config["fewshot_config"] = {**examples, "split": named["fewshot_split"]}
    manager.task_index[task] = replace(manager.task_index[task], yaml_path=None, cfg=config)
    return Examples(given[split], split, own if own != split else None) if split else None


def n_shots(own: int | None, asked: int | None) -> int:
    """Returns the number of solved examples that lm-eval shows.

    Args:
        own: the task's number; a task with 0 shows none, whatever is asked for.
        asked: value of --num_fewshot.
    """
    return (own or 0) if asked is None or own == 0 else asked


def _read_rows(path: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields (location, row) of a file.

    Raises:
        UserError: no task with this configuration can read such a file.
    """
    if is_mmlu(config):
        yield from read_mmlu(path)
    elif path.suffix == ".csv":
        task = config.get("task")
        raise UserError(f"--task_data: {path} is CSV, which only MMLU comes in; make JSON lines of it for task {task}")
    else:
        yield from read_objects(path)


def _check_rows(files: Mapping[str, Path], config: Mapping[str, Any]) -> None:
    """Checks that the files hold JSON objects which all have the keys of the first one.

    Raises:
        UserError: a row differs, or a file is empty; the message gives the line.
    """
    first: set[str] | None = None
    for path in files.values():
        empty = True
        for where, row in _read_rows(path, config):
            names = _keys(row) if isinstance(row, dict) else None
            if names is None:
                raise UserError(f"{path}, {where} is not a JSON object")
            first, empty = names if first is None else first, False
            for name in sorted(names ^ first):
                fault = "lacks {!r}, which the first row has" if name in first else "has {!r}, unlike the first row"
                raise UserError(f"{path}, {where} {fault.format(name)}")
        if empty:
            raise UserError(f"{path} has no rows")


def _keys(row: dict[str, Any], prefix: str = "") -> set[str]:
    """Returns the keys of a row, with dotted names for those of nested objects."""
    names = {prefix + name for name in row}
    return names.union(*(_keys(v, f"{prefix}{name}.") for name, v in row.items() if isinstance(v, dict)))


def misfit(source: Source, task: str, error: Exception | str) -> UserError:
    """Returns the error that a file's rows do not fit the task."""
    path = next(iter(source.values())) if isinstance(source, Mapping) else source
    cause = error if isinstance(error, str) else f"{type(error).__name__}: {one_line(error)}"
    names = "" if path.suffix == ".csv" else f"; its rows have {', '.join(sorted(_keys(_first_row(path))))}"
    return UserError(f"{path} does not fit task {task} ({cause}){names}")


def _first_row(path: Path) -> dict[str, Any]:
    return next(row for _, row in read_objects(path))


def one_line(error: Exception) -> str:
    """Returns an exception's message in one line."""
    return " ".join(str(error).split())
