"""Damages rows of each schema in each kind of file, and YAML files of the command line."""

import gzip
import io
import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml
from damage import flipped, mutated, with_content
from robustness_parts.campaign import Case, Section
from robustness_parts.material import Material, calling

_TURNS = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the king"},
          {"role": "assistant", "content": "ab cd", "weight": 1}]  # fmt: skip
_CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "say ab", "input": "now", "output": "ab", "history": [["a", "b"]], "system": "s"},
    "dolly": {"instruction": "say ab", "context": "now", "response": "ab", "category": "qa"},
    "completion": {"prompt": "say ab", "completion": " ab"},
    "longform": {"input": "say ab", "output": "ab"},
    "flan": {"inputs": "say ab", "targets": "ab"},
    "orca": {"system_prompt": "s", "question": "say ab", "response": "ab"},
    "qa": {"question": "say ab", "answer": "ab"},
    "messages": {"messages": _TURNS},
    "tools": {"messages": [*_TURNS[:2], {"role": "assistant", "content": None, "tool_calls": [_CALL]},
                           {"role": "tool", "content": "3", "tool_call_id": "a"}, _TURNS[2]], "tools": [_TOOL]},
    "sharegpt": {"conversations": [{"from": "human", "value": "say ab"}, {"from": "gpt", "value": "ab"}], "id": "1"},
    "choices": {"question": "which?", "choices": ["a", "b"], "answer": 1},
    "arc": {"question": "which?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
    "lima": {"conversations": ["say ab", "ab", "say cd", "cd"], "source": "x"},
    "oasst": {"message_id": "a", "parent_id": None, "role": "prompter", "text": "say ab", "lang": "en", "rank": 0,
              "message_tree_id": "a", "replies": [{"text": "ab", "role": "assistant", "rank": 0, "replies": []}]},
    "preference": {"chosen": _TURNS, "rejected": _TURNS, "prompt": "say ab"},
    "text": {"text": "say ab and ab"},
}  # fmt: skip
_THINGS = ("llamas eat grass", "iron melts late", "seven is prime", "the moon pulls tides", "bread needs yeast",
           "rivers reach seas", "glass is sand", "owls hunt at night", "paper burns", "salt dissolves", "kings rule",
           "wool is warm")  # fmt: skip
"""What the rows of a file differ in, or else they would be near-identical and none could be held out."""
_FORMATS = ("jsonl", "jsonl", "jsonl", "json", "csv", "parquet", "gz")


def sections(material: Material) -> list[Section]:
    """Returns the sections of rows and of YAML files."""
    return [
        Section("rows", lambda random, place: _rows(material, random, place), material.lit),
        Section("yaml", lambda random, place: _yaml(material, random, place), material.data),
    ]


def _rows(material: Material, random: Random, place: Path) -> Case:
    """Damages a file of 12 rows of a schema, and prepares it."""
    row, kind = random.choice(list(_SCHEMAS.values())), random.choice(_FORMATS)
    rows = [_about(row, thing) for thing in _THINGS]
    by_value = random.random() < 0.75
    if by_value and kind != "parquet":
        for i in random.sample(range(len(rows)), random.choice((1, 1, 3))):
            rows[i] = mutated(json.loads(rows[i]), random)
        if random.random() < 0.1:
            # one shape, and not that of a schema
            rows = [mutated(json.loads(_about(row, thing)), Random(1)) for thing in _THINGS]
    content: bytes = _written(rows, kind, by_value, random=random)
    if not by_value:
        content = flipped(content, random)
    path = with_content(place / f"rows.{'jsonl.gz' if kind == 'gz' else kind}", content)
    words = ["--checkpoint_dir", material.lit(), "--json_path", path, "--destination_path", place / "data"]
    if random.random() < 0.3:
        words += ["--bad_rows", "drop"]
    if random.random() < 0.2:
        words += ["--validation_file", path]
    if random.random() < 0.3:
        words += ["--max_seq_length", 20, "--truncation", random.choice(("drop", "cut_prompt", "cut_end", "error"))]
    n_bytes = max(len(content), sum(map(len, rows)))
    return Case(calling("scripts/prepare_json.py", *words, cwd=place), n_bytes)


def _about(row: dict[str, Any], thing: str) -> str:
    """Returns the text of a row that is about something."""
    text = json.dumps(row)
    for word in ("say ab", "the king", "which?"):
        text = text.replace(word, f"say why {thing}")
    return text


def _written(rows: list[str], kind: str, by_value: bool, random: Random) -> bytes:
    """Returns the content of a file of rows, each the text of a JSON value."""
    if kind == "json":
        return ("[" + ",\n".join(rows) + "]").encode("utf-8", "surrogatepass")
    if kind == "gz":
        return gzip.compress("\n".join(rows).encode("utf-8", "surrogatepass"))
    if kind == "csv":
        return _table(rows, random).encode("utf-8", "surrogatepass")
    if kind == "parquet":
        return _parquet(tuple(_other_types(rows, random) if by_value else rows))
    return "\n".join(rows).encode("utf-8", "surrogatepass")


def _table(rows: list[str], random: Random) -> str:
    """Returns rows as CSV, some cells of it odd."""
    values = [value for row in rows if "[" * 500 not in row and isinstance(value := json.loads(row), dict)]
    names = list(values[0]) if values else ["a"]
    lines = [",".join(map(str, names))]
    for value in values:
        cells = [str(value.get(name, ""))[:2_000] for name in names]
        if random.random() < 0.2:
            cells[random.randrange(len(cells))] = random.choice(('"', "\0", '"a"b', "a\nb", "x" * 200_000, "", ","))
        lines.append(",".join('"' + c.replace('"', '""') + '"' if random.random() < 0.9 else c for c in cells))
    return "\n".join(lines)


def _other_types(rows: list[str], random: Random) -> list[str]:
    """Returns rows with values of another type in one or two columns, as far as a table can hold them."""
    values = [json.loads(row) for row in rows]
    for _ in range(random.choice((1, 2))):
        name = random.choice(list(values[0]))
        odd = random.choice((None, 1, 0.5, True, "", [], ["a", None], {"a": 1}, [[1]]))
        values = [value | {name: odd} for value in values]
    return [json.dumps(value) for value in values]


@cache
def _parquet(rows: tuple[str, ...]) -> bytes:
    """Returns a Parquet file with these rows."""
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([json.loads(row) for row in rows]), file)
    return file.getvalue()


def _yaml(material: Material, random: Random, place: Path) -> Case:
    """Changes a file for --config, and plans the training that it asks for."""
    values = _defaults() | {"checkpoint_dir": str(material.lit()), "data_dir": str(material.data())}
    values |= {"out_dir": str(place / "out"), "dry_run": True}
    kept = {name: values.pop(name) for name in ("checkpoint_dir", "data_dir", "dry_run", "logger", "best_task")}
    kind = random.random()
    if kind < 0.7:
        text = mutated(dict(random.sample(sorted(values.items()), 8)), random)
    else:
        text = flipped(yaml.safe_dump(values).encode(), random).decode("utf-8", "surrogateescape")
        text = (
            text if kind < 0.9 else text.replace(": ", random.choice((":", ": &a ", ": *a ", ": !!python/name:os ")), 3)
        )
    path = place / "flags.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape" if kind >= 0.7 else "surrogatepass"))
    words = [word for name in ("checkpoint_dir", "data_dir") for word in (f"--{name}", kept[name])]
    script = "finetune/lora.py"
    return Case(calling(script, "--config", path, *words, "--dry_run", "true", cwd=place), path.stat().st_size)


@cache
def _defaults() -> dict[str, Any]:
    """Returns the flags of finetune/lora.py with their defaults, as --print_config prints them."""
    from robustness_parts.material import main_of

    from lit_gpt.cli.flags import flags_of
    from lit_gpt.cli.help import config_text

    return yaml.safe_load(config_text(flags_of(main_of("finetune/lora.py")), {}))
