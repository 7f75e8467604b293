"""Asks a model the challenge's questions in the engine, and scores what it writes, without HELM."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_gpt.args import HelmArgs
from lit_gpt.args.folders import require_there
from lit_gpt.errors import UserError
from lit_gpt.evaluation.helm.conf import Entry, challenge, read_conf
from lit_gpt.evaluation.helm.instances import TRAIN, Instance, numbered, sampled
from lit_gpt.evaluation.helm.metrics import Stat, stats_of
from lit_gpt.evaluation.helm.perturbations import Perturbations
from lit_gpt.evaluation.helm.programs import find_misspellings
from lit_gpt.evaluation.helm.prompts import Prompt, Window, prompts
from lit_gpt.evaluation.helm.results import Row
from lit_gpt.evaluation.helm.scenarios import Scenario, load_scenario
from lit_gpt.files import write_text
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import Request, Sampling
from lit_gpt.lightning import Fabric
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer

_KEPT = 4
"""Texts that the KV cache has room for besides those that are written: what prompts begin with is read once."""
_MOST_TRIES = 16
"""Times that a text is shortened because it would be tokenized into more tokens than it came from."""


@dataclass(frozen=True)
class _Task:
    """A scenario with the questions that are asked."""

    scenario: Scenario
    asked: list[Instance]


@dataclass(frozen=True)
class _Asked:
    """A prompt and what the model wrote."""

    scenario: str
    prompt: Prompt
    text: str


def load_tasks(args: HelmArgs) -> list[_Task]:
    """Returns the scenarios of the arguments, before a model is loaded.

    Raises:
        UserError: data is missing or damaged, or a scenario is not known.
    """
    require_there("scenario_data", args.scenario_data)
    return [_task(entry, args) for entry in (challenge() if args.conf is None else read_conf(args.conf))]


def _task(entry: Entry, args: HelmArgs) -> _Task:
    scenario = load_scenario(entry, args.scenario_data / "scenarios")
    instances = numbered(scenario.instances)
    asked = sampled(instances, entry.number("max_eval_instances") or args.max_eval_instances)
    if not asked:
        raise UserError(f"{scenario.name} has no question to ask")
    if augmentation := entry.settings.get("data_augmentation"):
        folder = args.scenario_data / "perturbations"
        asked = Perturbations(folder, augmentation, find_misspellings()).applied(asked)
    shots = [instance for instance in instances if instance.split == TRAIN]
    return _Task(scenario, shots + asked)


def ask(
    fabric: Fabric, model: GPT, tokenizer: Tokenizer, tasks: Sequence[_Task], batch_size: int
) -> tuple[dict[str, Row], list[_Asked]]:
    """Returns the scores of a model, and what it wrote.

    Args:
        batch_size: most texts that are written at once.

    Raises:
        UserError: a text fails, such as for want of memory.
    """
    window = Window(lambda text: tokenizer.encode(text, bos=False), lambda ids: _decoded(tokenizer, ids))
    rows: dict[str, Row] = {}
    found: list[_Asked] = []
    for task in tasks:
        scenario = task.scenario
        asked = [instance for instance in task.asked if instance.split != TRAIN]
        made = prompts(scenario.adapter, task.asked, asked, window)
        requests = [
            _request(prompt, i, scenario, block_size=model.config.block_size, tokenizer=tokenizer)
            for i, prompt in enumerate(made)
        ]
        longest = max(len(r.ids) + r.max_new_tokens for r in requests)
        room = (batch_size + _KEPT) * longest
        engine = Engine(model, tokenizer, max_rows=batch_size, max_tokens=room, autocast=fabric.autocast)
        answers = engine.complete(requests)
        if failed := [answer.error for answer in answers if answer.finish == "error"]:
            raise UserError(failed[0])
        found += [_Asked(scenario.name, p, a.text) for p, a in zip(made, answers, strict=True)]
        stats = stats_of(scenario, [(p.instance, a.text) for p, a in zip(made, answers, strict=True)])
        rows[scenario.name] = row_of(scenario, asked, stats)
        print(f"{scenario.name}: {len(requests)} prompts", file=sys.stderr)
    return rows, found


def row_of(scenario: Scenario, asked: Sequence[Instance], stats: dict[Stat, float]) -> Row:
    """Returns the row of a scenario in the table."""
    metric, split = scenario.main_metric, scenario.main_split
    own, *worst = (
        stats.get(Stat(metric, split, kind, "worst" if kind else "")) for kind in (None, "robustness", "fairness")
    )
    n = sum(instance.split == split and instance.perturbation is None for instance in asked)
    return Row(metric, split, own, *worst, n=n)


def _request(prompt: Prompt, i: int, scenario: Scenario, *, block_size: int, tokenizer: Tokenizer) -> Request:
    """Returns what the engine is asked; a prompt too long for the model is cut on the left, as by our server."""
    adapter = scenario.adapter
    n_new = min(adapter.max_tokens, block_size - 1)
    own = tokenizer.encode(prompt.text, bos=False)
    ids = tokenizer.frame(own, bos=None, eos=False)
    n_before, room = len(ids) - len(own), block_size - n_new
    if len(ids) > room:
        ids = ids[:n_before] + ids[n_before:][-(room - n_before) :]
    return Request(
        ids,
        n_new,
        Sampling(temperature=adapter.temperature, seed=i),
        stop=adapter.stop,
        stop_ids=tokenizer.stop_ids,
    )


def _decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Returns the text of tokens, without bytes of a cut character; it has no more tokens than they are."""
    for n in range(len(ids), max(0, len(ids) - _MOST_TRIES), -1):
        text = tokenizer.decode(ids[:n]).replace("\ufffd", "")
        if len(tokenizer.encode(text, bos=False)) <= len(ids):
            return text
    return tokenizer.decode(ids)


def save_asked(path: Path, asked: Sequence[_Asked]) -> None:
    """Writes prompts and what the model wrote, a JSON object a line."""
    rows = (
        {
            "scenario": a.scenario,
            "id": a.prompt.instance.id,
            "perturbation": a.prompt.instance.perturbation,
            "prompt": a.prompt.text,
            "text": a.text,
        }
        for a in asked
    )
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
