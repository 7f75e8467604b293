"""Which tasks of lm-eval a user means, by today's names or those of 2023, on the hub's data or on local files."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from lit_gpt.errors import UserError

RENAMED = {"truthfulqa_mc": ["truthfulqa_mc1", "truthfulqa_mc2"]}
"""Tasks of lm-eval 0.3, which the starter guide names, and what they are called since 0.4."""


def resolve(names: list[str], task_data: dict[str, Path], manager: TaskManager) -> list[str | dict[str, Any]]:
    """What lm-eval is to load: task names, or the configuration of a task with its data replaced by a local file.

    Args:
        names: tasks, groups or patterns.
        task_data: task -> JSON or JSON lines, in the schema that the task has on the hub.

    Raises:
        UserError: an unknown task, or local data that is missing, damaged or for a task that is not asked for.
    """
    local = {today: path for name, path in task_data.items() for today in modern(name)}
    tasks = list(dict.fromkeys(match for name in names for today in modern(name) for match in known(today, manager)))
    if unused := [name for name in local if name not in tasks]:
        raise UserError(f"--task_data names {unused[0]!r}, which --eval_tasks does not; it has {', '.join(tasks)}")
    return [with_local_data(task, local[task], manager) if task in local else task for task in tasks]


def modern(name: str) -> list[str]:
    """Today's names of a task."""
    if name in RENAMED:
        return RENAMED[name]
    return [name.replace("hendrycksTest-", "mmlu_", 1)]


def known(pattern: str, manager: TaskManager) -> list[str]:
    """The tasks that a name or a pattern with * stands for. Raises: UserError if there are none."""
    found = [pattern] if pattern in manager.all_tasks else manager.match_tasks([pattern])
    if not found:
        close = get_close_matches(pattern, manager.all_tasks, n=4)
        hint = f"close matches: {', '.join(close)}" if close else "lm-eval ls tasks lists them"
        raise UserError(f"unknown task {pattern!r}; {hint}")
    return found


def with_local_data(task: str, path: Path, manager: TaskManager) -> dict[str, Any]:
    """The task's own configuration, prompts and metrics included, reading its rows from `path`."""
    check_rows(path)
    yaml = manager.task_index[task].yaml_path
    if yaml is None:
        raise UserError(f"{task} is not a single task with a file of its own; name its members in --task_data")
    config = dict(load_yaml(yaml))
    split = config.get("test_split") or config.get("validation_split")
    splits = {s for key in ("test_split", "validation_split", "training_split", "fewshot_split") if (s := config.get(key))}
    return {
        **config,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {s: str(path.resolve()) for s in {split, *splits} if s}},
    }


def check_rows(path: Path) -> None:
    """Raises: UserError naming file and line unless `path` holds JSON objects, as a list or one a line."""
    if not path.is_file():
        raise UserError(f"--task_data: there is no file {path}")
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        try:
            json.loads(text)
        except ValueError as e:
            raise UserError(f"{path} is not valid JSON ({e})") from e
        return
    for i, line in enumerate(text.splitlines(), 1):
        try:
            ok = not line.strip() or isinstance(json.loads(line), dict)
        except ValueError as e:
            raise UserError(f"{path}, line {i}: not valid JSON ({e})") from e
        if not ok:
            raise UserError(f"{path}, line {i}: expected a JSON object")
