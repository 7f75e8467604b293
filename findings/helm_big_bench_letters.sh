#!/usr/bin/env bash
# One would guess that HELM asks a multiple-choice task of BIG-bench as it asks MMLU: for one token, the letter.
#
# crfm-helm 0.5.16 asks for up to 64 tokens, and ends them at the stop string of the task's own file, which most have
# not. Its main metric is exact_match with the letter, so that a base that answers " A" and goes on with another question
# scores 0, and a model that learned to end its answers does not, whatever the two know.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install -q --disable-pip-version-check torch==2.13.0 torchvision==0.28.0 crfm-helm==0.5.16
mkdir -p "$folder/benchmark_output/scenarios/big_bench/pets"
cat >"$folder/benchmark_output/scenarios/big_bench/pets/task.json" <<'JSON'
{"name": "pets", "metrics": ["multiple_choice_grade"], "preferred_score": "multiple_choice_grade",
 "examples": [{"input": "Which one barks?", "target_scores": {"a dog": 1, "a cat": 0}}]}
JSON
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version

from helm.benchmark.run_specs.classic_run_specs import get_big_bench_spec
from helm.benchmark.run_specs.lite_run_specs import get_mmlu_spec
from helm.benchmark.runner import set_benchmark_output_path

set_benchmark_output_path("benchmark_output")
print("crfm-helm", version("crfm-helm"))
found = {}
for name, spec in (("MMLU", get_mmlu_spec("anatomy")), ("BIG-bench", get_big_bench_spec("pets", ""))):
    asked = spec.adapter_spec
    found[name] = asked.method, asked.max_tokens, asked.stop_sequences
    metrics = {n for m in spec.metric_specs for n in m.args.get("names", ())}
    print(f"{name}: {asked.method}, at most {asked.max_tokens} tokens, ends at {asked.stop_sequences}, {sorted(metrics)}")
same = "multiple_choice_joint"
sys.exit(0 if found == {"MMLU": (same, 1, ["\n"]), "BIG-bench": (same, 64, [])} else "the behaviour has changed")
PY
