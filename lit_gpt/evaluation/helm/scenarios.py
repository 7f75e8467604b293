"""The challenge's scenarios: their questions from local files, how they are asked, and which score counts.

Files lie where HELM puts them, in its folder `benchmark_output/scenarios`.
"""

import csv
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import IO, Any

from lit_gpt.errors import UserError
from lit_gpt.evaluation.helm import bbq
from lit_gpt.evaluation.helm.conf import Entry
from lit_gpt.evaluation.helm.instances import TEST, TRAIN, VALID, Instance, Reference
from lit_gpt.evaluation.helm.prompts import Adapter
from lit_gpt.records import parse_json, read_object

_MATCHES = ("exact_match", "quasi_exact_match", "prefix_exact_match", "quasi_prefix_exact_match")
_BY_BIG_BENCH = {"exact_str_match": _MATCHES[:2], "rouge": ("rouge_1", "rouge_2", "rouge_l")}
"""Metric of BIG-bench -> HELM's."""
_EXPANDERS = ("model", "max_train_instances", "max_eval_instances", "data_augmentation", "num_train_trials")
"""Settings of an entry that every scenario takes."""


@dataclass(frozen=True)
class Scenario:
    """A scenario of an entry."""

    name: str
    """HELM's name of the run, without what is the same for all."""
    instances: list[Instance]
    adapter: Adapter
    metrics: tuple[str, ...]
    main_metric: str
    main_split: str = TEST
    has_braces: bool = False
    """Whether braces around a text are no part of it."""


def load_scenario(entry: Entry, folder: Path) -> Scenario:
    """Returns the scenario of an entry.

    Args:
        folder: HELM's folder `scenarios`, which has a folder for each scenario.

    Raises:
        UserError: there is no such scenario here, or its files are missing or damaged.
    """
    if entry.scenario not in _LOADERS:
        raise UserError(f"{entry.scenario}: mini_helm has {', '.join(_LOADERS)}; eval/helm.py runs all of HELM's")
    settings = {k: v for k, v in entry.settings.items() if k not in _EXPANDERS}
    method = settings.pop("method", "multiple_choice_joint")
    if method != "multiple_choice_joint" or entry.settings.get("num_train_trials", "1") != "1":
        raise UserError(f"{entry.description}: mini_helm has method=multiple_choice_joint and num_train_trials=1")
    load, known = _LOADERS[entry.scenario]
    if settings.keys() - set(known):
        raise UserError(f"{entry.description}: {min(settings.keys() - set(known))} is no setting that mini_helm has")
    try:
        found = load(folder, {key: settings.get(key, default) for key, default in known.items()})
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(
            f"{entry.scenario}: its data cannot be read ({e}); docs/helm.md says which files --scenario_data takes"
        ) from e
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, pickle.UnpicklingError, EOFError) as e:
        raise UserError(f"{entry.scenario}: its data in {folder} is damaged ({type(e).__name__}: {e})") from e
    shots = entry.number("max_train_instances")
    return found if shots is None else replace(found, adapter=replace(found.adapter, n_shots=shots))


def _mmlu(folder: Path, settings: Mapping[str, str]) -> Scenario:
    subject = settings["subject"]
    instances: list[Instance] = []
    for name, split in (("auxiliary_train", TRAIN), ("dev", TRAIN), ("val", VALID), ("test", TEST)):
        path = folder / "mmlu" / "data" / name / f"{subject}_{name}.csv"
        if not path.exists() and name != "test":
            continue
        with path.open(encoding="utf-8") as file:
            for question, *answers, right in csv.reader(file):
                correct = answers["ABCDE".index(right)]
                references = tuple(Reference(answer, answer == correct) for answer in answers)
                instances.append(Instance(question, references, split))
    about = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n"
    return Scenario(
        f"mmlu:subject={subject}", instances, _choice(about, "Question"), metrics=_MATCHES, main_metric="exact_match"
    )


def _truthful_qa(folder: Path, settings: Mapping[str, str]) -> Scenario:
    task = settings["task"]
    if task != "mc_single":
        raise UserError(f"truthful_qa:task={task}: HELM has mc_single only")
    with (folder / "truthful_qa" / "data" / "TruthfulQA.csv").open(encoding="utf-8") as file:
        rows = [(row[2].strip(), row[3], row[5]) for row in list(csv.reader(file))[1:]]
    n_train = int(len(rows) * 0.2)
    instances = []
    for i, (question, best, wrong) in enumerate(rows):
        answers = [Reference(_sentence(a), False) for a in wrong.split(";") if a.strip()]
        answers.append(Reference(_sentence(best)))
        first = ord(answers[-1].text[0]) % len(answers)
        turned = tuple(answers[first:] + answers[:first])
        instances.append(Instance(question, turned, TRAIN if i < n_train else VALID))
    return Scenario(
        f"truthful_qa:task={task}",
        instances,
        _choice("", "Question"),
        metrics=_MATCHES,
        main_metric="exact_match",
        main_split=VALID,
    )


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text[-1] == "." else f"{text}."


def _gsm(folder: Path, settings: Mapping[str, str]) -> Scenario:
    instances: list[Instance] = []
    for split in (TRAIN, TEST):
        path = folder / "gsm" / f"gsm_data_{split}"
        with path.open(encoding="utf-8") as file:
            for row in (parse_json(line, str(path)) for line in file):
                answer = row["answer"].replace("####", "The answer is").replace("\n", " ") + "."
                instances.append(Instance(row["question"], (Reference(answer),), split))
    adapter = Adapter(False, input_prefix="Q: ", output_prefix="A: ", max_tokens=400, stop=("\n\n",))
    metrics = ("exact_match_indicator", "final_number_exact_match")
    return Scenario("gsm", instances, adapter, metrics=metrics, main_metric=metrics[0])


def _bbq(folder: Path, settings: Mapping[str, str]) -> Scenario:
    subject = settings["subject"]
    about = "The following are multiple choice questions (with answers).\n"
    instances = bbq.questions(folder / "bbq", subject)
    return Scenario(
        f"bbq:subject={subject}",
        instances,
        _choice(about, "Passage"),
        metrics=_MATCHES,
        main_metric="quasi_exact_match",
    )


def _summaries(folder: Path, settings: Mapping[str, str]) -> Scenario:
    """CNN/DailyMail: examples of 50 to 150 words, articles of at most 512."""
    with (folder / "summarization" / "data" / "cnndm.pk").open("rb") as file:
        data = _PlainPickle(file).load()
    instances = []
    for name, split in (("train", TRAIN), ("validation", VALID), ("test", TEST)):
        for row in data[name]:
            words = row["article"].split()[:512]
            if split != TRAIN or 50 <= len(words) <= 150:
                summary = " ".join(row["highlights"].split())
                instances.append(Instance(" ".join(words), (Reference(summary),), split))
    adapter = Adapter(
        False,
        input_prefix="###\nArticle: ",
        input_suffix="\n\n",
        output_prefix="Summarize the above article in 3 sentences.\n",
        max_tokens=128,
        temperature=float(settings["temperature"]),
        stop=("###",),
    )
    return Scenario(
        "summarization_cnndm",
        instances,
        adapter,
        metrics=_BY_BIG_BENCH["rouge"],
        main_metric="rouge_2",
        has_braces=True,
    )


class _PlainPickle(pickle.Unpickler):
    """Reads texts, numbers and collections of them, and refuses whatever could run code."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and only texts and collections of them are read")


def _big_bench(folder: Path, settings: Mapping[str, str]) -> Scenario:
    task, subtask = settings["task"], settings["subtask"]
    about = read_object(folder / "big_bench" / task / subtask / "task.json")
    examples = about["examples"]
    Random(0).shuffle(examples)
    n_test = max(int(0.2 * len(examples)), 16)
    n_train = len(examples) - 2 * n_test
    instances = []
    for i, example in enumerate(examples):
        split = TRAIN if i < n_train else TEST if i < n_train + n_test else VALID
        if scores := example.get("target_scores"):
            references = tuple(Reference(text, score == max(scores.values())) for text, score in scores.items())
        else:
            targets = example["target"]
            references = tuple(Reference(t) for t in (targets if isinstance(targets, list) else [targets]))
        instances.append(Instance(example["input"], references, split))
    is_choice = "multiple_choice_grade" in about["metrics"]
    metrics = _MATCHES if is_choice else sum((_BY_BIG_BENCH.get(name, ()) for name in about["metrics"]), ())
    if not metrics:
        raise UserError(f"big_bench:task={task}: mini_helm has none of its metrics, {', '.join(about['metrics'])}")
    ends = about.get("stop_string")
    adapter = Adapter(
        is_choice,
        instructions=about.get("task_prefix", ""),
        input_prefix=about.get("example_input_prefix", "Question: "),
        output_prefix=about.get("example_output_prefix", "Answer: "),
        max_tokens=64,
        stop=(str(ends),) if ends and not is_choice else (),
    )
    name = f"big_bench:task={task}" + (f",subtask={subtask}" if subtask else "")
    return Scenario(name, instances, adapter, metrics=metrics, main_metric=metrics[0])


def _choice(about: str, noun: str) -> Adapter:
    """Returns how a question is asked whose answer is a letter."""
    return Adapter(True, about, input_prefix=f"{noun}: ", output_prefix="Answer: ")


_LOADERS: dict[str, tuple[Callable[[Path, Mapping[str, str]], Scenario], dict[str, str]]] = {
    "mmlu": (_mmlu, {"subject": ""}),
    "truthful_qa": (_truthful_qa, {"task": ""}),
    "gsm": (_gsm, {}),
    "bbq": (_bbq, {"subject": ""}),
    "summarization_cnndm": (_summaries, {"temperature": "0.3", "device": "cpu"}),
    "big_bench": (_big_bench, {"task": "", "subtask": ""}),
}
"""Scenario -> what loads it, and its settings with their defaults."""
