"""Rows come out of Parquet files, folders of `save_to_disk` and data sets of the hub as out of JSON lines."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc

import pytest
from conftest import ROOT
from dataset_hub import DatasetHub

from lit_gpt.args import PrepareArgs
from lit_gpt.args.curation import AugmentArgs, MixArgs
from lit_gpt.args.data import DatasetArgs
from lit_gpt.data import store
from lit_gpt.data.curate.mix import mix
from lit_gpt.data.prepare.download import fetched_rows
from lit_gpt.data.prepare.run import Files, prepare
from lit_gpt.data.prepare.sources import read_entries, read_rows
from lit_gpt.errors import UserError
from lit_gpt.prompts import Turn

datasets = pytest.importorskip("datasets")


def called(name, **arguments):
    """A conversation with a call, whose arguments are others than those of another one."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    tool = {
        "type": "function",
        "function": {"name": name, "parameters": {"properties": {k: {"type": "string"} for k in arguments}}},
    }
    return {
        "messages": [
            {"role": "system", "content": f"Be {name}."},
            {"role": "user", "content": f"how {name}"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "29", "name": name},
            {"role": "assistant", "content": "It is 29.", "reasoning_content": "hm", "weight": 1},
        ],
        "tools": [tool],
        "source": "x",
    }


NESTED = [
    called("tall", place={"city": "Brielle"}),
    called("far", miles=3),
    called("old", names=["a", "b"]),
]
PLAIN = [{"instruction": f"Say {i}", "input": "", "output": str(i)} for i in range(7)]


def as_lines(entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def test_parquet_and_saved_folders_are_read_as_json_lines_are(tmp_path):
    """Arrow fills the keys that only other rows have with null; they are not there."""
    table = datasets.Dataset.from_list(NESTED)
    assert len(table[0]["messages"][2]["tool_calls"][0]["function"]["arguments"]) == 3  # what Arrow makes of it
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "one")
    (tmp_path / "rows.jsonl").write_text(as_lines(NESTED))
    want = list(read_rows(tmp_path / "rows.jsonl"))
    arguments = [row.turns[2].extra["tool_calls"][0]["function"]["arguments"] for row in want]
    assert arguments == [{"place": {"city": "Brielle"}}, {"miles": 3}, {"names": ["a", "b"]}]
    (tmp_path / "shards").mkdir()
    table.select([0]).to_parquet(tmp_path / "shards" / "train-00000-of-00002.parquet")
    table.select([1, 2]).to_parquet(tmp_path / "shards" / "train-00001-of-00002.parquet")
    for name in ("rows.parquet", "saved", "one", "shards"):
        rows = list(read_rows(tmp_path / name))
        assert [r.turns for r in rows] == [r.turns for r in want] and [r.tools for r in rows] == [r.tools for r in want]
        assert rows[1].unused == ("source",) and rows[1].where.endswith("row 1" if name == "shards" else "row 2")
        assert [[dict(t.extra) for t in r.turns] for r in rows] == [[dict(t.extra) for t in r.turns] for r in want]


def test_what_datasets_keeps_as_json_comes_back_as_it_was(tmp_path):
    """Values of one type here and another there. The library's own decoding makes a number of the text 29."""
    parts = [{"type": "text", "text": "how "}, {"type": "text", "text": "far"}]
    chats = [called("tall", n=1, m=None), called("far", n="x")]
    chats[1]["messages"][1]["content"] = parts
    answers = [{"prompt": p, "completion": c} for p, c in (("a", "29"), ("b", ["x"]), ("c", "true"), ("d", "null"))]
    answers += [{"prompt": "e", "completion": 'so "it" is'}]
    for name, entries in (("chats", chats), ("answers", answers)):
        (tmp_path / f"{name}.jsonl").write_text(as_lines(entries))
        table = datasets.load_dataset("json", data_files=str(tmp_path / f"{name}.jsonl"), cache_dir=tmp_path / "cache")
        assert any("Json" in str(feature) for feature in table["train"].features.values())
        table["train"].to_parquet(tmp_path / f"{name}.parquet")
        table["train"].save_to_disk(tmp_path / name)
    want = list(read_rows(tmp_path / "chats.jsonl"))
    assert want[0].turns[2].extra["tool_calls"][0]["function"]["arguments"] == {"n": 1, "m": None}
    for name in ("chats.parquet", "chats"):
        rows = list(read_rows(tmp_path / name))
        assert rows == want and [row.turns for row in rows] == [row.turns for row in want]
    for name in ("answers.parquet", "answers"):
        rows = [
            rows if isinstance(rows, UserError) else rows[0].response
            for rows in read_entries(tmp_path / name, None, True)
        ]
        assert rows[0::2] == ["29", "true", 'so "it" is'] and rows[3] == "null" and "found a list" in str(rows[1])


def test_what_cannot_be_read_is_said_in_one_line(tmp_path, monkeypatch):
    both = {"train": datasets.Dataset.from_list(PLAIN), "test": datasets.Dataset.from_list(PLAIN)}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "two")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + bytes(30))
    (tmp_path / "empty").mkdir()
    (tmp_path / "splits").mkdir()
    for split, table in both.items():
        table.to_parquet(tmp_path / "splits" / f"{split}-00000-of-00001.parquet")
    for name, message in (
        ("two", r"two holds the splits test, train; pass the folder of one of them"),
        ("splits", r"splits holds Parquet files of test, train; pass one file"),
        ("bad.parquet", r"bad.parquet could not be read \(.*\)"),
        ("no.parquet", "there is no file"),
        ("empty", "empty is a folder without Parquet files, and none of datasets.save_to_disk"),
    ):
        with pytest.raises(UserError, match=message) as e:
            list(read_rows(tmp_path / name))
        assert "\n" not in str(e.value) and len(str(e.value)) < 500
    assert len(list(read_rows(tmp_path / "two" / "test"))) == 7
    both["train"].to_parquet(tmp_path / "good.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"good.parquet is read with the library datasets; pip install 'lit-gpt\[datasets"
    ):
        list(read_rows(tmp_path / "good.parquet"))


def test_the_memory_does_not_grow_with_the_file(tmp_path):
    text = "so long a text " * 600  # 9 kB
    rows = ({"instruction": f"Say {i}", "output": f"{i} {text}"} for i in range(4_000))
    datasets.Dataset.from_list(list(rows)).to_parquet(tmp_path / "rows.parquet", batch_size=200)
    next(iter(read_rows(tmp_path / "rows.parquet")))
    tracemalloc.start()
    assert sum(1 for _ in read_rows(tmp_path / "rows.parquet")) == 4_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15e6  # 36 MB in all


CODE = """
import json, os, sys
from pathlib import Path
from lit_gpt.data.prepare.arrow import fetched_dataset
from lit_gpt.errors import UserError
for name, config, split, token in json.loads(sys.argv[1]):
    os.environ.update({"HF_TOKEN": token} if token else {})
    try:
        print("ok", fetched_dataset(name, config, split, Path("data")), flush=True)
    except UserError as e:
        print("error", e, flush=True)
"""


def fetch(hub, folder, *asked):
    """What another process, whose hub is the one on loopback, says of each data set, in a line or two."""
    place = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(asked)],
        env={**os.environ, **place}, cwd=folder, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(("ok", "error"))], done.stdout


CARD = "configs:\n- config_name: small\n  data_files: small.jsonl\n- config_name: large\n  data_files: large.jsonl\n"


def test_a_data_set_of_the_hub_is_fetched_once_by_split_and_configuration(tmp_path):
    with DatasetHub() as hub:
        files = {"data/train.jsonl": as_lines(PLAIN).encode(), "data/test.jsonl": as_lines(PLAIN[:2]).encode()}
        hub.add("datasets/org/plain", files)
        datasets.Dataset.from_list(NESTED).to_parquet(tmp_path / "x.parquet")
        hub.add("datasets/org/nested", {"train.parquet": (tmp_path / "x.parquet").read_bytes()})
        several = {"small.jsonl": as_lines(PLAIN[:3]).encode(), "large.jsonl": as_lines(PLAIN).encode()}
        hub.add("datasets/org/several", {"README.md": f"---\n{CARD}---\n".encode(), **several})
        hub.add("datasets/org/gated", files, readers={"hf_good"})
        asked = [
            ("org/plain", None, "train", None), ("org/plain", None, "test", None), ("org/nested", None, "train", None),
            ("org/several", "small", "train", None), ("org/plain", None, "dev", None),
            ("org/several", None, "train", None), ("org/none", None, "train", None), ("org/gated", None, "train", None),
            ("org/plain", None, "train", None), ("org/gated", None, "test", "hf_good"),
        ]  # fmt: skip
        said, output = fetch(hub, tmp_path, *asked)
        assert [line.split()[0] for line in said] == ["ok"] * 4 + ["error"] * 4 + ["ok"] * 2
        for line, parts in zip(
            said[4:8],
            (["dev", "train", "--split"], ["large", "--dataset_config"], ["none of this name"], ["gated", "HF_TOKEN"]),
            strict=True,
        ):
            assert all(part in line for part in ("--dataset org/", *parts)), line
        assert "org__plain.train.jsonl was fetched before" in output
    folder = tmp_path / "data"
    names = ["org__gated.test", "org__nested.train", "org__plain.test", "org__plain.train", "org__several.small.train"]
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.jsonl" for name in names]
    sizes = {name: len(list(read_rows(folder / f"{name}.jsonl"))) for name in names}
    assert list(sizes.values()) == [2, 3, 2, 7, 3]
    first = next(iter(read_rows(folder / "org__nested.train.jsonl")))
    assert first.turns[1] == Turn("user", "how tall")
    assert first.turns[2].extra["tool_calls"][0]["function"]["arguments"] == {"place": {"city": "Brielle"}}


def test_flags_that_contradict_each_other(tmp_path):
    hub = DatasetArgs("org/plain", validation_split="test")
    for path, validation, args, message in (
        (None, None, DatasetArgs(), "pass one of them"),
        ("x.json", None, hub, "pass one of them"),
        (None, tmp_path / "v.json", hub, "--validation_split and --validation_file"),
        (
            "org/name",
            None,
            DatasetArgs(),
            "there is no file org/name; a data set of the hub is read with --dataset org/n",
        ),
        ("org/name.json", None, DatasetArgs(), r"there is no file org/name.json$"),
    ):
        with pytest.raises(UserError, match=message):
            fetched_rows(path, validation, args, tmp_path)
    with pytest.raises(UserError, match="go with --dataset"):
        DatasetArgs(split="test")
    for split in ("train", "test"):  # as if they were fetched before
        (tmp_path / f"org__plain.{split}.jsonl").write_text(as_lines(PLAIN))
    found = fetched_rows(None, None, hub, tmp_path)
    assert found == (tmp_path / "org__plain.train.jsonl", tmp_path / "org__plain.test.jsonl")


@pytest.mark.smoke
def test_parquet_is_prepared_from_end_to_end(checkpoint, tmp_path):
    rows = [{"prompt": f"{i} {i} {i}", "completion": f"{i}"} for i in range(100, 130)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    prepare(
        Files((tmp_path / "rows.parquet",)), None, tmp_path / "d", checkpoint,
        PrepareArgs(check=False, test_split_fraction=0.2),
    )  # fmt: skip
    train, val, meta = store.load(tmp_path / "d")
    assert (len(train), len(val)) == (24, 6) and meta["prompt_style"] == "alpaca"
    datasets.Dataset.from_list([{"prompt": f"{i} or {i}", "completion": "no"} for i in range(20)]).save_to_disk(
        tmp_path / "saved"
    )
    shutil.copy(tmp_path / "rows.parquet", tmp_path / "d")  # where it was prepared, too
    sources = {"ready": tmp_path / "d", "saved": tmp_path / "saved", "file": tmp_path / "rows.parquet"}
    mix(tmp_path / "m", MixArgs(sources), AugmentArgs(), PrepareArgs(check=False, test_split_fraction=0.2), checkpoint)
    entries = store.load(tmp_path / "m")[2]["mix"]["sources"]
    assert {name: entry["train"] for name, entry in entries.items()} == {"ready": 24, "saved": 16, "file": 24}
