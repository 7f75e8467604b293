"""The score of a model on one task, taken repeatedly while it is trained, to choose the best checkpoint."""

import io
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from lit_gpt.args import EvalArgs, HelmArgs, ValidationArgs
from lit_gpt.errors import UserError
from lit_gpt.evaluation.helm.results import COLUMNS, mean_of
from lit_gpt.evaluation.helm.run import ask, load_tasks
from lit_gpt.evaluation.names import resolve
from lit_gpt.evaluation.run import choose_style, evaluate
from lit_gpt.evaluation.tasks import prepare
from lit_gpt.lightning import Fabric
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer

_MINI_HELM = "mini_helm"
"""Name that stands for HELM's scenarios instead of a task of lm-eval."""


def task_score(
    fabric: Fabric, model: GPT, checkpoint_dir: Path, validation: ValidationArgs, prompt_style: str
) -> Callable[[], float]:
    """Returns a function that scores the current `model` on the task that `validation` names.

    The function raises a UserError if the task has no such metric.

    Args:
        prompt_style: prompt style of the training.

    Raises:
        UserError: no such task, no data for it, or a metric for which lower is better.
    """
    assert validation.best_task is not None
    if validation.best_task == _MINI_HELM:
        return _mini_helm_score(fabric, model, checkpoint_dir, validation)
    name, data = validation.best_task, validation.best_task_data
    args = EvalArgs(
        eval_tasks=(name,),
        task_data=None if data is None else {name: data},
        task_path=validation.best_task_path,
        limit=validation.best_limit,
        bootstrap_iters=0,
        apply_prompt_style=validation.best_apply_prompt_style,
    )
    tasks, style = prepare(args), choose_style(args, prompt_style)
    resolved = resolve(name, tasks[0])  # a name of 2023, or one with wildcards, may stand for one group
    _check_direction(tasks[1], validation.best_metric)
    tokenizer = Tokenizer(checkpoint_dir)

    def score() -> float:
        model.eval()
        with redirect_stdout(io.StringIO()):  # drops the table that `evaluate` prints
            results = evaluate(fabric, model, tokenizer=tokenizer, tasks=tasks, args=args, style=style, about={})
        metrics = _metrics_of(resolved[0] if len(resolved) == 1 else name, results)
        wanted = validation.best_metric or next(iter(metrics), None)
        if wanted not in metrics or not math.isfinite(metrics[wanted]):
            raise UserError(f"--best_metric {wanted}: the task {name} has {', '.join(metrics) or 'no metric'}")
        return metrics[wanted]

    return score


def _mini_helm_score(
    fabric: Fabric, model: GPT, checkpoint_dir: Path, validation: ValidationArgs
) -> Callable[[], float]:
    """Returns a function that gives the mean score of the current model over HELM's scenarios.

    Raises:
        UserError: no data for them, or a flag that they do not have.
    """
    if validation.best_apply_prompt_style:
        raise UserError(f"--best_task {_MINI_HELM} asks as HELM does: leave --best_apply_prompt_style out")
    column = validation.best_metric or COLUMNS[0]
    if column not in COLUMNS:
        raise UserError(f"--best_metric {column}: {_MINI_HELM} has {', '.join(COLUMNS)}")
    own = {
        "conf": validation.best_task_path,
        "scenario_data": validation.best_task_data,
        "max_eval_instances": validation.best_limit,
    }
    args = HelmArgs(**{name: value for name, value in own.items() if value is not None})
    tasks, tokenizer = load_tasks(args), Tokenizer(checkpoint_dir)

    def score() -> float:
        model.eval()
        rows, _ = ask(fabric, model, tokenizer, tasks, batch_size=args.batch_size)
        return mean_of([getattr(row, column) for row in rows.values()]) or 0.0

    return score


def _check_direction(loaded: list[Any], wanted: str | None) -> None:
    """Checks that a higher value of the metric is better, since the best checkpoint has the highest score.

    Raises:
        UserError: a lower value is better.
    """
    for item in loaded:
        for task in item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item]:
            higher = task.higher_is_better()
            metric = wanted.partition(",")[0] if wanted else next(iter(higher), None)
            if higher.get(metric) is False:
                others = [name for name, is_higher in higher.items() if is_higher]
                way = f"pass --best_metric {others[0]}, or leave" if others else "leave"
                raise UserError(
                    f"--best_task {task.config.task}: its {metric} is better if it is lower, and the best checkpoint "
                    f"is the one with the highest score; {way} --best_task out, and it is that of the lowest loss"
                )


def _metrics_of(name: str, results: dict[str, Any]) -> dict[str, float]:
    """Returns the metrics of `name` by their names: a task's or a group's own, or else the mean over its tasks.

    A metric with several filters is also listed as `metric,filter`; its name alone stands for the first filter.

    Args:
        name: a name of lm-eval's index, or one that --eval_tasks takes and that stands for several.
        results: result of `evaluate` for that name alone.
    """
    scored = {task: _numbers(entry) for task, entry in results["results"].items()}
    if scored.get(name):
        return scored[name]
    tasks = [scored[task] for task in results["n-samples"]]
    common = [metric for metric in tasks[0] if all(metric in entry for entry in tasks)]
    return {metric: sum(entry[metric] for entry in tasks) / len(tasks) for metric in common}


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    """Returns the metrics in an entry of lm-eval's results, under their names with and without the filter."""
    found: dict[str, float] = {}
    for key, value in entry.items():
        metric, comma, _ = key.partition(",")
        if comma and isinstance(value, int | float) and not metric.endswith("_stderr"):
            found.setdefault(metric, float(value))
            found[key] = float(value)
    return found
