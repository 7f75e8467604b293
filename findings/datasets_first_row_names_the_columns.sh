#!/usr/bin/env bash
# Rows of which some have a key that the first one lacks ("system", "tools", "rejected"), given to Dataset.from_list.
#
# One would guess: a column with None where a row has nothing, as load_dataset("json") makes of the same rows in a file, or
# an error.
# What happens: the first row's keys are the columns. What other rows have beside them is gone, without a word. Within a
# column it is the other way round: keys of nested objects are those of all rows together, so that the arguments of a call
# come back with those of all other tools in the set, as None; load_dataset("json") keeps them apart.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1
cd "$work"
HF_HOME="$work/home" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import json

import datasets

rows = [
    {"question": "How warm is Rome?", "calls": [{"name": "weather", "arguments": {"city": "Rome"}}]},
    {"question": "Who won?", "calls": [{"name": "search", "arguments": {"query": "final"}}], "system": "Be brief."},
]
with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
listed = datasets.Dataset.from_list(rows)
read = datasets.load_dataset("json", data_files="rows.jsonl", split="train")
print("datasets", datasets.__version__)
found = {}
for name, table in (("from_list", listed), ('load_dataset("json")', read)):
    found[name] = table.column_names, table[1]["calls"][0]["arguments"]
    print(f"{name}: columns {found[name][0]}, arguments of the second call {found[name][1]}")
assert found["from_list"] == (["question", "calls"], {"city": None, "query": "final"}), "the behaviour has changed"
expected = ["question", "calls", "system"], {"query": "final"}
assert found['load_dataset("json")'] == expected, "the behaviour has changed"
PYTHON
