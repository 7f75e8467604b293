"""The tasks that both evaluate: lm-eval's own prompts and metrics on local files."""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import lm_eval
from lm_eval.tasks._yaml_loader import load_yaml

SUBJECTS = ("anatomy", "astronomy")
_SHOTS = 5


class Task(NamedTuple):
    """A task of lm-eval and its local files."""

    name: str
    yaml: str
    """Its configuration, below lm_eval/tasks."""
    files: dict[str, Path]
    """Split -> file; the first is the one whose questions are asked."""


class Job(NamedTuple):
    """What is evaluated at once."""

    tasks: list[Task]
    limit: int
    """Questions of each task."""
    shots: int | None = None
    """Solved questions before each; None leaves it to the task."""


def jobs(data: Path, folder: Path) -> dict[str, Job]:
    """Returns the jobs by name, and writes the files that they need into `folder`.

    Args:
        data: folder with truthfulqa_mc.jsonl, gsm8k_train.jsonl and gsm8k_test.jsonl.
    """
    truthful, test = data / "truthfulqa_mc.jsonl", {"test": data / "gsm8k_test.jsonl"}
    both = [Task(f"truthfulqa_mc{n}", f"truthfulqa/truthfulqa_mc{n}.yaml", {"validation": truthful}) for n in (1, 2)]
    subjects = [
        Task(f"mmlu_{s}", f"mmlu/default/mmlu_{s}.yaml", _subject(truthful, folder, s, i))
        for i, s in enumerate(SUBJECTS)
    ]
    gsm8k = [Task("gsm8k", "gsm8k/gsm8k.yaml", test | {"train": data / "gsm8k_train.jsonl"})]
    return {"truthfulqa": Job(both, 60), "mmlu": Job(subjects, 20, _SHOTS), "gsm8k": Job(gsm8k, 20)}


def _subject(source: Path, folder: Path, subject: str, number: int) -> dict[str, Path]:
    """Returns the files of a subject in MMLU's format, made of questions that have four answers or more."""
    rng, rows = random.Random(number), []
    for line in source.read_text(encoding="utf-8").splitlines()[number::2]:
        row = json.loads(line)
        choices = row["mc1_targets"]["choices"][:4]
        right = choices[0]
        if len(choices) == 4:
            rng.shuffle(choices)
            rows.append({"question": row["question"], "choices": choices, "answer": choices.index(right)})
    files = {}
    for split, part in (("test", rows[_SHOTS:]), ("dev", rows[:_SHOTS])):
        files[split] = folder / f"{subject}_{split}.jsonl"
        files[split].write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return files


def config_of(task: Task) -> dict[str, Any]:
    """Returns lm-eval's configuration of a task that reads the local files."""
    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / task.yaml)
    files = {split: str(path) for split, path in task.files.items()}
    return {**config, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
