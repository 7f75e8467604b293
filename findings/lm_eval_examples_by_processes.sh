#!/usr/bin/env bash
# The worked examples that lm-eval puts before a question, with one process, with two, and with `--samples`.
#
# One would guess that they hang on the seed and the question: the seed is set for each task, and two GPUs make the same
# evaluation faster.
# What happens: examples are drawn one question after another from one generator of the task, and each process draws for
# its own questions only. With two processes nearly every question gets other examples than with one, and `--samples`,
# which asks some of the questions again, asks them with others, too. So scores of one model differ with the number of
# GPUs, and what --samples prints is not what the whole evaluation asked.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet lm-eval==0.4.13 datasets==5.2.0
export HF_HOME="$work/cache" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
cd "$work"
cat > ask.py <<'PYTHON'
import json
from importlib.metadata import version
from pathlib import Path

from lm_eval.tasks import TaskManager, get_task_dict

for split, n in (("train", 40), ("test", 12)):
    Path(f"{split}.jsonl").write_text("".join(json.dumps({"q": f"{split} {i}", "a": f"{i}"}) + "\n" for i in range(n)))
TASK = {
    "task": "numbers",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "test": "test.jsonl"}},
    "training_split": "train",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}:",
    "doc_to_target": "{{a}}",
    "num_fewshot": 2,
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def prompts(rank, world_size, **only):
    task = get_task_dict([TASK], TaskManager(include_defaults=False))["numbers"]
    task.set_fewshot_seed(1234)  # as `simple_evaluate` does, with this number unless told otherwise
    task.build_all_requests(rank=rank, world_size=world_size, **only)
    return {r.doc["q"]: r.args[0] for r in task.instances}


one, again = prompts(0, 1), prompts(0, 1)
two = prompts(0, 2) | prompts(1, 2)
some = prompts(0, 1, samples=[5])
other = sum(one[q] != two[q] for q in one)
print(f"lm-eval {version('lm-eval')}: with two processes {other} of {len(one)} questions have other examples than with one")
for name, asked in (("one process", one), ("two", two), ("--samples", some)):
    print(f"{name:12}{asked['test 5']!r}")
assert one == again and one.keys() == two.keys(), "the behaviour has changed"
assert other > 6 and some["test 5"] != one["test 5"], "the behaviour has changed"
PYTHON
"$work/venv/bin/python" ask.py 2> log || { tail -20 log; exit 1; }
