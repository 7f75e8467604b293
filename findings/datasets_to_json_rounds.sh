#!/usr/bin/env bash
# Floating-point numbers written by Dataset.to_json, such as probabilities, rewards or learning rates of a log.
#
# One would guess that they come back as they were: JSON's numbers are decimal and of any length, json.dumps writes as many
# digits as it takes, and to_parquet keeps every bit.
# What happens: to_json writes through pandas, which keeps 10 places after the point, not 10 digits. Whatever is below
# 5e-11 is written as 0.0, so that the logarithm of a small probability becomes -inf. Numbers in lists are cut as well.
# double_precision=15, which to_json hands on, moves the limit to 5e-16.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
cd "$work"
HF_HOME="$work/home" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import json
from pathlib import Path

import datasets
import pandas

print("datasets", datasets.__version__, "pandas", pandas.__version__)
numbers = [1.5e-5, 2e-11, 0.12345678901234567]
table = datasets.Dataset.from_dict({"p": numbers, "several": [[x] for x in numbers]})
table.to_json("rows.jsonl")
table.to_json("more.jsonl", double_precision=15)
table.to_parquet("rows.parquet")
found = {}
for name in ("rows", "more"):
    rows = [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
    found[name] = [row["p"] for row in rows]
    assert found[name] == [row["several"][0] for row in rows], "the behaviour has changed"
found["parquet"] = datasets.Dataset.from_parquet("rows.parquet")["p"][:]
print("written:", numbers)
for name, got in {"to_json": "rows", "double_precision=15": "more", "to_parquet": "parquet"}.items():
    print(f"{name}: {found[got]}")
assert found["rows"] == [1.5e-5, 0.0, 0.123456789] and found["parquet"] == numbers, "the behaviour has changed"
assert found["more"][1] == 2e-11, "the behaviour has changed"
PYTHON
