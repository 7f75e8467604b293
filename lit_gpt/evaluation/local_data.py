"""Rows of a local file in the place of a task's data on the hub; the task's prompts and metrics stay.

`lm_eval` is imported inside the functions, so that the scripts' `--help` stays fast.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_gpt.data.entries import read_objects
from lit_gpt.errors import UserError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


def use_local_data(manager: "TaskManager", task: str, path: Path, num_fewshot: int | None) -> None:
    """Let the task read `path` instead of the hub; its name, version, prompts and metrics stay.

    The file stands for the split that the task evaluates. Solved examples come from it, too: lm-eval then takes care
    that no question is among its own examples.

    Args:
        num_fewshot: as asked for; None is the task's own number.

    Raises:
        UserError: the file has no fit rows, or the task gets its data from Python code.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    check_rows(path)
    entry = manager.task_index[task]
    config = load_yaml(entry.yaml_path) if entry.yaml_path else dict(entry.cfg or {})
    if "class" in config or config.get("custom_dataset"):
        raise UserError(f"--task_data: {task} gets its data from Python code, which a file cannot replace")
    evaluated = config.get("test_split") or config.get("validation_split")
    examples = config.get("fewshot_config") or {}
    shots = config.get("num_fewshot") if num_fewshot is None or config.get("num_fewshot") == 0 else num_fewshot
    config |= {
        "dataset_path": "json",
        "dataset_name": None,
        "training_split": None,
        "validation_split": None,
        # lm-eval leaves a question out of its own examples only where both are of the test split
        "test_split": evaluated,
        "fewshot_split": evaluated if shots and "samples" not in examples else None,
        "dataset_kwargs": {"data_files": {evaluated: str(path.resolve())}},
    }
    if "split" in examples:
        config["fewshot_config"] = {**examples, "split": config["fewshot_split"]}
    manager.task_index[task] = replace(entry, yaml_path=None, cfg=config)


def check_rows(path: Path) -> None:
    """Raises: UserError with the line, unless the file holds JSON objects that all have the keys of the first."""
    first: set[str] | None = None
    for where, row in read_objects(path):
        names = keys(row) if isinstance(row, dict) else None
        if names is None:
            raise UserError(f"{path}, {where} is not a JSON object")
        first = names if first is None else first
        for name in sorted(names ^ first):
            fault = (
                f"lacks {name!r}, which the first row has" if name in first else f"has {name!r}, unlike the first row"
            )
            raise UserError(f"{path}, {where} {fault}")
    if first is None:
        raise UserError(f"{path} has no rows")


def keys(row: dict[str, Any], prefix: str = "") -> set[str]:
    """The names in a row, those of objects within it with a dot."""
    names = {prefix + name for name in row}
    return names.union(*(keys(v, f"{prefix}{name}.") for name, v in row.items() if isinstance(v, dict)))


def file_in(folder: Path, task: str) -> Path:
    """The file for `task`. Raises: UserError if the folder has none."""
    for suffix in (".jsonl", ".json"):
        if (path := folder / f"{task}{suffix}").is_file():
            return path
    raise UserError(f"--task_data: {folder} has no {task}.jsonl")


def misfit(path: Path, task: str, error: Exception) -> UserError:
    """The error that `path` has other rows than the task needs."""
    row = next(row for _, row in read_objects(path))
    cause = f"{type(error).__name__}: {one_line(error)}"
    return UserError(f"{path} does not fit task {task} ({cause}); its rows have {', '.join(sorted(keys(row)))}")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
