"""The solved examples (few-shot examples) before a question: whether there are enough, and where they come from."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lit_gpt.errors import UserError
from lit_gpt.evaluation.local.data import Examples, n_shots

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


def check_examples(task: "ConfigurableTask", num_fewshot: int | None, source: Examples | None) -> None:
    """Checks that there are enough solved examples for those to be shown before each question.

    Args:
        num_fewshot: number of examples asked for; None stands for the task's own number.
        source: origin of the examples if it is a local file, otherwise None.

    Raises:
        UserError: there are fewer examples.
    """
    wanted = n_shots(task.config.num_fewshot, num_fewshot)
    pool = getattr(getattr(task, "sampler", None), "df", None)
    if not wanted or pool is None:
        return
    # lm-eval keeps a question out of its own examples under this condition only
    left_out = _most_copies(task, pool) if task.fewshot_cfg.split == task.config.test_split else 0
    room = max(0, len(pool) - left_out)
    if wanted <= room:
        return
    asked = f"--num_fewshot {wanted} asks for" if num_fewshot is not None else f"it shows {wanted} examples,"
    where = source.file if source else f"its {task.fewshot_cfg.split or 'own'} data"
    beside = " beside the one that is asked" if left_out else ""
    more = f", or name a file with more: {_way(task.config.task, source)}" if source and source.own else ""
    raise UserError(
        f"task {task.config.task}: {asked} more solved questions than there are, {where} has {room}{beside}; "
        f"pass --num_fewshot {room} or less{more}"
    )


def _most_copies(task: "ConfigurableTask", pool: list) -> int:
    """Returns how often, at most, a question is among its own examples.

    It is at least 1, because lm-eval draws one more example than it shows.
    """
    copies = Counter(json.dumps(row, sort_keys=True, default=str) for row in pool)
    asked = (json.dumps(row, sort_keys=True, default=str) for row in task.eval_docs)
    return max(1, max((copies[row] for row in asked), default=1))


def _way(task: str, source: Examples) -> str:
    """Returns the flag that gives the examples a file of their own."""
    return f'--task_data "{{{task}: {{{source.split}: {source.file}, {source.own}: FILE}}}}"'


def say_where_from(sources: Mapping[str, Examples]) -> list[str]:
    """Returns sentences on where the solved examples of local data come from, one for each kind of origin.

    Args:
        sources: origin of the examples, by task.
    """
    sentences = []
    for apart in (True, False):
        tasks = [task for task, source in sources.items() if (source.own is None) is apart]
        if not tasks:
            continue
        first = sources[tasks[0]]
        others = f" (and {len(tasks) - 1} more tasks likewise)" if len(tasks) > 1 else ""
        text = f"Solved examples of {tasks[0]}: from {first.file}, split {first.split}{others}"
        if not apart:
            text += f". The task's own are of its split {first.own}: {_way(tasks[0], first)}"
        sentences.append(text)
    return sentences
