"""Resolves names of tasks, groups and tags: lm-eval's of today and of 2023, and the user's own.

`lm_eval` is imported inside the functions, so that the scripts' `--help` stays fast.
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_gpt.args import EvalArgs
from lit_gpt.errors import UserError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_OLD_NAMES = {"truthfulqa_mc": ("truthfulqa_mc1", "truthfulqa_mc2"), "hendrycksTest-*": ("mmlu",)}
"""Names of 2023 that stand for several tasks of today; besides, `hendrycksTest-<subject>` is `mmlu_<subject>`."""


def make_manager(args: EvalArgs) -> "TaskManager":
    """Returns lm-eval's index of tasks, in which the user's own tasks take precedence.

    Reading all 14,000 files of lm-eval takes longer than many evaluations. If each wanted task is declared in exactly
    one file, only those files are read.

    Raises:
        UserError: task_path does not exist, or holds no task.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind, TaskIndex

    own = _own_tasks(args.task_path)
    given = [*args.eval_tasks, *(args.task_data or {})]
    wanted = {name for g in given for name in _OLD_NAMES.get(g, (_today(g),))} - own.keys()
    files = _files_of(wanted, Path(lm_eval.__file__).parent / "tasks")
    entries = {name: TaskIndex.entry_from_path(path) for name, path in files.items()}
    entries = {n: e for n, e in entries.items() if e and e.name == n and e.kind is Kind.TASK} | own
    groups = [entry for entry in own.values() if entry.kind is Kind.GROUP]
    members = {name for entry in groups for name in _children((entry.cfg or {}).get("task"))}
    simple = wanted <= entries.keys() and members <= own.keys()
    manager = TaskManager(include_defaults=not simple)
    manager.task_index.update(entries if simple else own)
    return manager


def _own_tasks(task_path: Path | None) -> dict[str, Any]:
    """Returns lm-eval's index of the file or folder `task_path`.

    Raises:
        UserError: it does not exist, or holds no task.
    """
    from lm_eval.tasks._index import TaskIndex

    if task_path is None:
        return {}
    if not task_path.exists():
        raise UserError(f"--task_path {task_path}: there is no such file or folder")
    if task_path.is_dir():
        found = TaskIndex.build([task_path])
    else:
        try:
            entry = TaskIndex.entry_from_path(task_path)
        except Exception as e:  # YAML's own exceptions, a missing include, a wrong shape
            raise UserError(f"--task_path {task_path} is not a task of lm-eval ({' '.join(str(e).split())})") from e
        found = {entry.name: entry} if entry else {}
    if not found:
        raise UserError(f"--task_path {task_path} has no task of lm-eval: a YAML file with the key `task`")
    return found


def _files_of(names: set[str], folder: Path) -> dict[str, Path]:
    """Returns the YAML file that declares each task; names declared in no file, or in several, are left out."""
    if not names or not all(re.fullmatch(r"[\w.-]+", name) for name in names):
        return {}
    declares = re.compile(
        rf"""^["']?task["']?:[ ]*["']?({"|".join(map(re.escape, names))})["']?[ \r]*$""", re.MULTILINE
    )
    found: dict[str, list[Path]] = {}
    for path in folder.rglob("*.yaml"):
        for name in declares.findall(path.read_text(encoding="utf-8", errors="replace")):
            found.setdefault(name, []).append(path)
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}


def _today(name: str) -> str:
    """Returns `mmlu_<subject>` for `hendrycksTest-<subject>`, and other names unchanged."""
    return re.sub("^hendrycksTest-", "mmlu_", name)


def resolve_all(given: tuple[str, ...], manager: "TaskManager") -> list[str]:
    """Returns the names in lm-eval's index for the names `given`, each once.

    Raises:
        UserError: a name is unknown, or none is given.
    """
    names = list(dict.fromkeys(name for g in given for name in resolve(g, manager)))
    if not names:
        raise UserError('--eval_tasks names no task; e.g. --eval_tasks "[truthfulqa_mc, arc_challenge]"')
    return names


def resolve(given: str, manager: "TaskManager") -> list[str]:
    """Returns the names in lm-eval's index for one name, which may be of 2023 or have wildcards.

    Raises:
        UserError: no task has that name; the message suggests similar ones.
    """
    index = manager.task_index
    if given in index:
        return [given]
    if given in _OLD_NAMES:
        return list(_OLD_NAMES[given])
    # lm-eval has many more tasks in mmlu_* than the 57 subjects that the old name stood for
    pool = leaves("mmlu", manager) if given.startswith("hendrycksTest-") and "mmlu" in index else list(index)
    found = sorted(name for name in pool if fnmatchcase(name, _today(given)))
    # if tasks match, drop matching groups, whose tasks would be evaluated twice
    found = [name for name in found if _is_task(name, manager)] or found
    if not found:
        close = get_close_matches(_today(given), [*index, *_OLD_NAMES], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "lm-eval ls tasks lists those it has"
        raise UserError(f"--eval_tasks: lm-eval has no task {given!r}; {hint}")
    return found


def _is_task(name: str, manager: "TaskManager") -> bool:
    """Returns whether `name` is a single task, rather than a group or a tag."""
    return manager.task_index[name].kind.name in ("TASK", "PY_TASK")


def leaves(name: str, manager: "TaskManager") -> list[str]:
    """Returns the single tasks that a task, group or tag consists of."""
    entry = manager.task_index.get(name)
    if entry is None or _is_task(name, manager):
        return [name]
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    return [leaf for child in _children((entry.cfg or {}).get("task")) for leaf in leaves(child, manager)]


def _children(members: Any) -> Iterator[str]:
    """Yields the names in a group's `task:` list, including those of nested groups."""
    for member in members if isinstance(members, list) else [members]:
        if isinstance(member, str):
            yield member
        elif isinstance(member, dict) and isinstance(member.get("task"), list):
            yield from _children(member["task"])
        elif isinstance(member, dict):
            yield member.get("task") or member["group"]
