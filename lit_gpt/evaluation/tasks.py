"""Which tasks are evaluated: lm-eval's, by their names of today and of 2023, with data from the hub or local files.

`lm_eval` is imported inside the functions, so that the scripts' `--help` stays fast.
"""

import logging
import re
from collections.abc import Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_gpt.args import EvalArgs
from lit_gpt.errors import UserError
from lit_gpt.evaluation.local_data import file_in, misfit, one_line, use_local_data

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

OLD_NAMES = {"truthfulqa_mc": ("truthfulqa_mc1", "truthfulqa_mc2"), "hendrycksTest-*": ("mmlu",)}
"""Names of 2023 that stand for several tasks of today; `hendrycksTest-<subject>` is `mmlu_<subject>`."""
BLANK_RESULTS = {"multiple_choice": (0.0, False), "loglikelihood": (0.0, False), "loglikelihood_rolling": 0.0}
"""What a model could answer, by output type: enough to see whether a task can score its rows."""


def prepare(args: EvalArgs) -> "tuple[TaskManager, list[Task | Group]]":
    """The tasks of `args` with their data, and the manager they came from; makes the folder of the results.

    To be called before a model is loaded, so that a wrong name costs seconds.

    Raises:
        UserError: unknown task, missing or unfit data, a place for the results that cannot be written.
    """
    make_room(args.save_filepath)
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    logging.getLogger("lm_eval.tasks._index").setLevel(logging.ERROR)  # it warns of task_path taking precedence
    manager = make_manager(args)
    names = resolve_all(args.eval_tasks, manager)
    local = local_files(args, manager, {leaf for name in names for leaf in leaves(name, manager)})
    for task, path in local.items():
        use_local_data(manager, task, path, args.num_fewshot)
    owners: dict[str, str] = {}
    loaded: list[Task | Group] = []
    for name in names:
        found = load(name, manager, local)
        for leaf, task in found["tasks"].items():
            check_task(task, local.get(leaf))
            if owners.setdefault(leaf, name) != name:
                raise UserError(f"--eval_tasks: {leaf} is part of both {owners[leaf]} and {name}; name one of them")
        loaded += [found["groups"][name]] if name in found["groups"] else found["tasks"].values()
    return manager, loaded


def make_room(save_filepath: Path | None) -> None:
    """Make the folder of the results. Raises: UserError if the file could not be written there."""
    if save_filepath is None:
        return
    if save_filepath.is_dir():
        raise UserError(f"--save_filepath {save_filepath} is a folder; give a file in it, e.g. results.json")
    try:
        save_filepath.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--save_filepath {save_filepath}: no folder can be made for it ({e.strerror})") from e


def make_manager(args: EvalArgs) -> "TaskManager":
    """lm-eval's index of tasks, the user's own first.

    Reading all of lm-eval's 14,000 files takes longer than many an evaluation. Where a task's name is in exactly one
    of them, that file is enough.

    Raises:
        UserError: there is nothing at task_path.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind, TaskIndex

    own = own_tasks(args.task_path)
    given = [*args.eval_tasks, *(args.task_data or {})]
    wanted = {name for g in given for name in OLD_NAMES.get(g, (today(g),))} - own.keys()
    files = files_of(wanted, Path(lm_eval.__file__).parent / "tasks")
    entries = {name: TaskIndex.entry_from_path(path) for name, path in files.items()}
    entries = {n: e for n, e in entries.items() if e and e.name == n and e.kind is Kind.TASK} | own
    simple = wanted <= entries.keys() and not any(entry.kind is Kind.GROUP for entry in own.values())
    manager = TaskManager(include_defaults=not simple)
    manager.task_index.update(entries if simple else own)
    return manager


def own_tasks(task_path: Path | None) -> dict[str, Any]:
    """lm-eval's index of the file or folder `task_path`. Raises: UserError if there is none, or no task in it."""
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
            raise UserError(f"--task_path {task_path} is not a task of lm-eval ({one_line(e)})") from e
        found = {entry.name: entry} if entry else {}
    if not found:
        raise UserError(f"--task_path {task_path} has no task of lm-eval: a YAML file with the key `task`")
    return found


def files_of(names: set[str], folder: Path) -> dict[str, Path]:
    """The YAML file that declares each task; names that no file, or more than one, declares are left out."""
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


def today(name: str) -> str:
    """`hendrycksTest-<subject>` as `mmlu_<subject>`, other names as they are."""
    return re.sub("^hendrycksTest-", "mmlu_", name)


def resolve_all(given: tuple[str, ...], manager: "TaskManager") -> list[str]:
    """Names in lm-eval's index for the names `given`, each once. Raises: UserError for an unknown name, or none."""
    names = list(dict.fromkeys(name for g in given for name in resolve(g, manager)))
    if not names:
        raise UserError('--eval_tasks names no task; e.g. --eval_tasks "[truthfulqa_mc, arc_challenge]"')
    return names


def resolve(given: str, manager: "TaskManager") -> list[str]:
    """Names in lm-eval's index for one name: old or of today, with wildcards or without.

    Raises:
        UserError: no task has that name; tells close matches.
    """
    index = manager.task_index
    if given in index:
        return [given]
    if given in OLD_NAMES:
        return list(OLD_NAMES[given])
    # lm-eval has many more tasks in mmlu_* than the 57 subjects that the old name stood for
    pool = leaves("mmlu", manager) if given.startswith("hendrycksTest-") and "mmlu" in index else list(index)
    found = sorted(name for name in pool if fnmatchcase(name, today(given)))
    # a group beside its own tasks would be evaluated twice
    found = [name for name in found if is_task(name, manager)] or found
    if not found:
        close = get_close_matches(today(given), [*index, *OLD_NAMES], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "lm-eval ls tasks lists those it has"
        raise UserError(f"--eval_tasks: lm-eval has no task {given!r}; {hint}")
    return found


def is_task(name: str, manager: "TaskManager") -> bool:
    """Whether `name` is one task: not a group, not a tag."""
    return manager.task_index[name].kind.name in ("TASK", "PY_TASK")


def leaves(name: str, manager: "TaskManager") -> list[str]:
    """The tasks that a task, group or tag comes down to."""
    entry = manager.task_index.get(name)
    if entry is None or is_task(name, manager):
        return [name]
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    return [leaf for child in children(entry.cfg.get("task")) for leaf in leaves(child, manager)]


def children(members: Any) -> Iterator[str]:
    """Names in a group's `task:`, those of groups within it included."""
    for member in members if isinstance(members, list) else [members]:
        if isinstance(member, str):
            yield member
        elif isinstance(member, dict) and isinstance(member.get("task"), list):
            yield from children(member["task"])
        elif isinstance(member, dict):
            yield member.get("task") or member["group"]


def local_files(args: EvalArgs, manager: "TaskManager", evaluated: set[str]) -> dict[str, Path]:
    """Task -> file, from --task_data.

    Raises:
        UserError: a file that is missing, or for a task that is not evaluated.
    """
    files: dict[str, Path] = {}
    for given, path in (args.task_data or {}).items():
        if not path.exists():
            raise UserError(f"--task_data {given}: there is no {path}")
        tasks = {leaf for name in resolve(given, manager) for leaf in leaves(name, manager)} & evaluated
        if not tasks:
            raise UserError(
                f"--task_data names {given!r}, which is not among --eval_tasks {', '.join(args.eval_tasks)}"
            )
        for task in sorted(tasks):
            files[task] = file_in(path, task) if path.is_dir() else path
    return files


def load(name: str, manager: "TaskManager", local: dict[str, Path]) -> dict[str, Any]:
    """lm-eval's tasks and groups for one name.

    Raises:
        UserError: data that cannot be fetched, or a local file that the task cannot read.
    """
    try:
        return {"groups": {}, **manager.load([name])}
    except ModuleNotFoundError as e:
        raise UserError(f"task {name} needs the Python package {e.name}; install it with pip") from e
    except OSError as e:
        raise UserError(
            f"the data of task {name} could not be fetched ({one_line(e)}); where there is no hub, name a local copy: "
            f'--task_data "{{{name}: FILE.jsonl}}"'
        ) from e
    except Exception as e:  # whatever prompts and Python code of a task raise on rows they were not made for
        files = [local[leaf] for leaf in leaves(name, manager) if leaf in local]
        if not files:
            raise
        raise misfit(files[0], name, e) from e


def check_task(task: "Task", path: Path | None) -> None:
    """See whether this toolkit can run the task, and whether the task can score its local data.

    Args:
        path: the local data; None if it came from the hub.

    Raises:
        UserError: it cannot.
    """
    name = task.config.task
    unsafe, multimodal = getattr(task, "UNSAFE_CODE", False), getattr(task, "MULTIMODAL", False)
    if unsafe or multimodal:
        what = "runs code that the model wrote" if unsafe else "has pictures or sound in its questions"
        raise UserError(f"task {name} {what}; this toolkit does not evaluate it")
    if path is None:
        return
    try:
        for doc in task.eval_docs:
            task.doc_to_text(doc), task.doc_to_target(doc)
        if task.OUTPUT_TYPE in BLANK_RESULTS:
            task.build_all_requests(limit=1)
            task.process_results(task.eval_docs[0], [BLANK_RESULTS[task.OUTPUT_TYPE]] * len(task.instances))
    except Exception as e:  # as above
        raise misfit(path, name, e) from e
