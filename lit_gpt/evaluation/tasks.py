"""Prepares the tasks to evaluate: lm-eval's or the user's, with data from the hub or from local files.

`lm_eval` is imported inside the functions, so that the scripts' `--help` stays fast.
"""

import logging
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lit_gpt.args import EvalArgs
from lit_gpt.errors import UserError
from lit_gpt.evaluation.examples import check_examples, say_where_from
from lit_gpt.evaluation.local.data import Source, config_of, local_files, misfit, one_line, use_local_data
from lit_gpt.evaluation.names import leaves, make_manager, resolve_all

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import ConfigurableTask, Task
    from lm_eval.tasks import TaskManager

_BLANK_RESULTS = {"multiple_choice": (0.0, False), "loglikelihood": (0.0, False), "loglikelihood_rolling": 0.0}
"""A possible answer of a model, by output type: enough to check that a task can score its rows."""
_ALLOW = "HF_ALLOW_CODE_EVAL"
"""Environment variable that must be 1 for the metric `code_eval` of Hugging Face's `evaluate`."""


def prepare(args: EvalArgs) -> "tuple[TaskManager, list[Task | Group]]":
    """Returns lm-eval's task manager and the tasks of `args` with their data; makes the folder of the results.

    Call it before a model is loaded, so that a wrong name costs seconds.

    Raises:
        UserError: an unknown task, data that is missing or does not fit, or results that cannot be written.
    """
    _make_room(args.save_filepath)
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    logging.getLogger("lm_eval.tasks._index").setLevel(logging.ERROR)  # its warnings that task_path takes precedence
    manager = make_manager(args)
    names = resolve_all(args.eval_tasks, manager)
    evaluated = [leaf for name in names for leaf in leaves(name, manager)]
    for task in evaluated:
        _check_code(task, manager, args)
    local = local_files(args, manager, set(evaluated))
    owners: dict[str, str] = {}
    loaded: list[Task | Group] = []
    with TemporaryDirectory() as scratch:
        examples = {
            task: use_local_data(manager, task, source, num_fewshot=args.num_fewshot, scratch=Path(scratch))
            for task, source in local.items()
        }
        for name in names:
            found = _load(name, manager, local)
            for leaf, task in found["tasks"].items():
                _check_task(task, local.get(leaf))
                check_examples(task, args.num_fewshot, examples.get(leaf))
                if owners.setdefault(leaf, name) != name:
                    raise UserError(f"--eval_tasks: {leaf} is part of both {owners[leaf]} and {name}; name one of them")
            loaded += [found["groups"][name]] if name in found["groups"] else found["tasks"].values()
    for sentence in say_where_from({task: source for task, source in examples.items() if source}):
        print(sentence, file=sys.stderr)
    return manager, loaded


def _make_room(save_filepath: Path | None) -> None:
    """Makes the folder of the results.

    Raises:
        UserError: the file could not be written there.
    """
    if save_filepath is None:
        return
    if save_filepath.is_dir():
        raise UserError(f"--save_filepath {save_filepath} is a folder; give a file in it, e.g. results.json")
    try:
        save_filepath.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--save_filepath {save_filepath}: no folder can be made for it ({e.strerror})") from e


def _check_code(task: str, manager: "TaskManager", args: EvalArgs) -> None:
    """Checks that the user confirmed a task that runs code which the model writes.

    It reads only the configuration, because loading such a task already runs code.

    Raises:
        UserError: the user did not confirm it.
    """
    import lm_eval

    if not config_of(task, manager, resolve_func=False).get("unsafe_code"):
        return
    path = getattr(manager.task_index[task], "yaml_path", None) or Path()
    is_theirs = Path(lm_eval.__file__).resolve().parent in path.resolve().parents  # an environment may be a link
    allowed = not is_theirs or os.environ.get(_ALLOW) == "1"
    if not args.confirm_run_unsafe_code or not allowed:
        ways = [] if args.confirm_run_unsafe_code else ["pass --confirm_run_unsafe_code true"]
        ways += [] if allowed else [f"set {_ALLOW}=1 in the environment"]
        raise UserError(
            f"task {task} runs code that the model writes, on this machine and unguarded; where that is acceptable, "
            + " and ".join(ways)
        )


def _load(name: str, manager: "TaskManager", local: dict[str, Source]) -> dict[str, Any]:
    """Returns lm-eval's tasks and groups for one name.

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
    except Exception as e:  # prompts and Python code of a task may raise anything on unfit rows
        sources = [local[leaf] for leaf in leaves(name, manager) if leaf in local]
        if not sources:
            raise
        raise misfit(sources[0], name, e) from e


def _check_task(task: "ConfigurableTask", source: Source | None) -> None:
    """Checks that this toolkit can run the task, and that the task can score its local data.

    Args:
        source: the local data; None if it came from the hub.

    Raises:
        UserError: one of them is not so.
    """
    name = task.config.task
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"task {name} has pictures or sound in its questions; this toolkit does not evaluate it")
    if source is None:
        return
    docs: Any = task.eval_docs
    try:
        for doc in docs:
            task.doc_to_text(doc)
            task.doc_to_target(doc)
        if task.OUTPUT_TYPE in _BLANK_RESULTS:
            task.build_all_requests(limit=1)
            task.process_results(task.eval_docs[0], [_BLANK_RESULTS[task.OUTPUT_TYPE]] * len(task.instances))
    except Exception as e:  # see `_load`
        raise misfit(source, name, e) from e
    if task.OUTPUT_TYPE == "multiple_choice" and task.config.process_results is None:
        for number, doc in enumerate(docs, 1):
            _check_answer(task, doc, number, source)


def _check_answer(task: "ConfigurableTask", doc: dict[str, Any], number: int, source: Source) -> None:
    """Checks that the right answer is among the choices; lm-eval would count such a question as answered wrongly.

    Raises:
        UserError: it is not.
    """
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    for answer in gold if isinstance(gold, list) else [gold]:
        fits = answer in choices if isinstance(answer, str) else answer in range(len(choices))
        if not fits or isinstance(answer, float):  # lm-eval does not accept a float as the index of a choice
            shown = ", ".join(map(repr, choices[:6]))
            raise misfit(source, task.config.task, f"question {number}: the answer {answer!r} is none of {shown}")
