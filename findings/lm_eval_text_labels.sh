#!/usr/bin/env bash
# lm-eval 0.4.13, a multiple-choice task over rows whose right answer is a number kept as text ("label": "1", as CSV and
# many JSON exports have it).
#
# One would guess that `doc_to_target: label` and `doc_to_target: "{{label}}"` say the same, as both name the column,
# and that a label which cannot be used is an error.
# What happens: the template is taken for a number (choice 1); the bare name of the column stays text, is searched for
# among the texts of the choices, is not found, and every question counts as wrong. A model that is always right scores
# 1.0 with one and 0.0 with the other; only the log mentions it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet lm-eval==0.4.13 datasets==5.2.0
export HF_HOME="$work/cache" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
cd "$work"
cat > rows.jsonl <<'ROWS'
{"q": "Which is a fruit?", "options": ["a chair", "an apple", "a lamp"], "label": "1"}
{"q": "Which is a colour?", "options": ["blue", "a door", "a shoe"], "label": "0"}
ROWS
cat > ask.py <<'ASK'
import sys
from importlib.metadata import version

from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager


class Right(LM):
    """Always prefers the right answer."""

    def loglikelihood(self, requests):
        return [(0.0 if r.args[1].strip() in ("an apple", "blue") else -9.0, True) for r in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        raise NotImplementedError


def accuracy(name, target):
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": target,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    manager = TaskManager(include_defaults=False)
    return simple_evaluate(Right(), tasks=[task], task_manager=manager, bootstrap_iters=0)["results"][name]["acc,none"]


template, name = accuracy("by_template", "{{label}}"), accuracy("by_name", "label")
print(f"lm-eval {version('lm-eval')}, doc_to_target: '{{{{label}}}}' scores {template}, 'label' scores {name}")
sys.exit(0 if (template, name) == (1.0, 0.0) else 1)
ASK
"$work/venv/bin/python" ask.py 2> log || { tail -20 log; exit 1; }
grep -m1 "Label index" log
