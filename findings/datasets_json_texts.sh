#!/usr/bin/env bash
# A column that holds a text in some rows and a list in others, read by datasets.load_dataset("json", ...).
#
# One would guess: either an error, since a column of Arrow has one type, or every value comes back as the file has it.
#
# What happens: the column gets the type Json, and texts that happen to be JSON themselves are taken for it. The text
# "29" comes back as the number 29, "true" as True, "null" as None (an answer lost), and the text {"a": 1}, such as the
# arguments of a call in OpenAI's format, as an object. The text "yes" stays a text. Read from Parquet that datasets
# wrote, by pyarrow alone, the same values are texts of JSON, with "yes" in quotes of its own.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1
cd "$work"
HF_HOME="$work/home" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import json

import datasets
import pyarrow
import pyarrow.parquet

print("datasets", datasets.__version__, "pyarrow", pyarrow.__version__)
answers = ["29", "true", "null", '{"a": 1}', "yes", ["yes", "no"]]
with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps({"answer": answer}) + "\n" for answer in answers)
table = datasets.load_dataset("json", data_files="rows.jsonl", split="train")
back = [row["answer"] for row in table]
table.to_parquet("rows.parquet")
raw = pyarrow.parquet.read_table("rows.parquet")["answer"].to_pylist()
print("features:", table.features)
for before, after, stored in zip(answers, back, raw):
    print(f"in the file {before!r:18} from datasets {after!r:18} from pyarrow {stored!r}")
assert back == [29, True, None, {"a": 1}, "yes", ["yes", "no"]], "the behaviour has changed"
assert raw == ["29", "true", "null", '{"a": 1}', '"yes"', '["yes","no"]'], "the behaviour has changed"
PYTHON
