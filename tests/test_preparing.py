"""What a prepare script decides by the rows it finds, and what it asks for before it replaces anything."""

import json
import shutil
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from conftest import ROOT

from lit_gpt.args import PrepareArgs
from lit_gpt.args.curation import AugmentArgs, MixArgs
from lit_gpt.cli import parse
from lit_gpt.data import store
from lit_gpt.data.curate.mix import mix
from lit_gpt.data.prepare.run import Files, prepare
from lit_gpt.errors import UserError

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def with_template(checkpoint, tmp_path_factory):
    """The tiny checkpoint with a chat template."""
    folder = tmp_path_factory.mktemp("templated") / "tiny"
    shutil.copytree(checkpoint, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def write(path, entries):
    path.write_text("\n".join(map(json.dumps, entries)))
    return Files((path,))


def chats(n=20, **keys):
    said = ({"role": "user", "content": f"{i} {i} {i} ?"} for i in range(100, 100 + n))
    return [{"messages": [user, {"role": "assistant", "content": "yes"}], **keys} for user in said]


def instructions(n=20, **keys):
    return [{"instruction": f"{i} {i} {i} ?", "output": "yes", **keys} for i in range(100, 100 + n)]


QUIET = {"check": False, "test_split_fraction": 0.2}


@pytest.mark.parametrize(
    "entries, asked, with_it, without",
    [
        (chats(), None, "chat_template", "vicuna"),
        (chats(), "alpaca", "alpaca", "alpaca"),
        (instructions(), None, "alpaca", "alpaca"),
        (instructions(), "chat_template", "chat_template", None),
        (instructions(system="Be brief."), None, "alpaca", "alpaca"),
        (instructions(history=[["a", "b"]]), None, "chat_template", "vicuna"),
        ([{"conversations": ["a b c", f"{i}"]} for i in range(100, 120)], None, "chat_template", "vicuna"),
    ],
    ids=["chat", "chat as alpaca", "alpaca", "alpaca as chat", "alpaca with system", "history", "lima"],
)
def test_the_prompt_style_follows_the_rows_unless_one_is_asked_for(
    checkpoint, with_template, tmp_path, capsys, entries, asked, with_it, without
):
    files = write(tmp_path / "rows.jsonl", entries)
    for folder, style in ((with_template, with_it), (checkpoint, without)):
        if style is None:
            continue
        args = PrepareArgs(asked, **QUIET)
        prepare(files, files, tmp_path / style / folder.name, folder, args)
        train, _, meta = store.load(tmp_path / style / folder.name)
        assert meta["prompt_style"] == style and ("chat_template" in meta) == (style == "chat_template")
        told = f"prompt style: {style} (the rows are conversations, and {folder.name} has"
        assert (told in capsys.readouterr().out) == (asked is None and style != "alpaca")
        assert len(train) == 20
        shutil.rmtree(tmp_path / style)


def test_a_mixture_of_files_takes_one_style(checkpoint, with_template, tmp_path):
    write(tmp_path / "chat.jsonl", chats())
    write(tmp_path / "plain.jsonl", instructions())
    sources = {name: tmp_path / f"{name}.jsonl" for name in ("plain", "chat")}
    mix(tmp_path / "m", MixArgs(sources), AugmentArgs(), PrepareArgs(**QUIET), with_template)
    assert store.load(tmp_path / "m")[2]["prompt_style"] == "chat_template"
    prepare(Files((sources["plain"],)), None, tmp_path / "ready", with_template, PrepareArgs("plain", **QUIET))
    sources = {"ready": tmp_path / "ready", "chat": sources["chat"]}
    mix(tmp_path / "n", MixArgs(sources), AugmentArgs(), PrepareArgs(**QUIET), with_template)
    assert store.load(tmp_path / "n")[2]["prompt_style"] == "plain"  # that of what is prepared already


def test_a_prepared_set_is_replaced_only_if_asked(checkpoint, tmp_path):
    files = write(tmp_path / "rows.jsonl", instructions())
    data = tmp_path / "data"
    data.mkdir()
    (data / "download.jsonl").write_text("not a prepared set")
    prepare(files, None, data, checkpoint, PrepareArgs(**QUIET))
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    with pytest.raises(UserError, match=r"data holds a prepared data set; .*--overwrite true to replace it"):
        prepare(files, None, data, checkpoint, PrepareArgs(seed=1, **QUIET))
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before
    prepare(files, None, data, checkpoint, PrepareArgs(seed=1, overwrite=True, **QUIET))
    assert store.load(data)[2]["seed"] == 1 and (data / "download.jsonl").is_file()


SCRIPTS = ["alpaca", "alpaca_libre", "csv", "dolly", "flan", "json", "lima", "longform", "mix", "oasst1"]
SOURCE = {"csv": "--csv_path", "json": "--json_path"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_asks_before_it_downloads_or_replaces(script, checkpoint, tmp_path):
    """Nothing is downloaded here: what is there already is told first."""
    (tmp_path / "meta.json").write_text("{}")
    spec = spec_from_file_location(f"prepare_{script}", ROOT / "scripts" / f"prepare_{script}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    argv = ["--checkpoint_dir", str(checkpoint), "--destination_path", str(tmp_path)]
    argv += [SOURCE[script], "https://127.0.0.1:1/x.json"] if script in SOURCE else []
    argv += ["--sources", f"{{a: {ROOT / 'demo/train.json'}}}"] if script == "mix" else []
    with pytest.raises(UserError, match=r"holds a prepared data set; .*--overwrite true"):
        module.main(**parse(module.main, argv))


def test_what_is_not_used_and_what_is_left_out_is_said_with_counts(checkpoint, tmp_path, capsys):
    rows = [*instructions(18, source="c4"), *instructions(2, source="", persona="x")]
    prepare(write(tmp_path / "rows.jsonl", rows), None, tmp_path / "d", checkpoint, PrepareArgs(**QUIET))
    output = capsys.readouterr().out
    assert "the key 'source' of 18 rows is not used\nthe key 'persona' of 2 rows is not used\n" in output
    assert store.load(tmp_path / "d")[2]["unused_keys"] == {"source": 18, "persona": 2}
    many = [row | {f"key {i}": 1} for i, row in enumerate(instructions(20))]
    prepare(write(tmp_path / "many.jsonl", many), None, tmp_path / "m", checkpoint, PrepareArgs(**QUIET))
    assert "the key 'key 11' of 1 row is not used\nnor are 8 other keys; meta.json" in capsys.readouterr().out
    bad = chats()
    bad[3]["messages"][1]["content"] = None
    bad[7]["messages"].reverse()
    bad[9]["messages"][1]["weight"] = "high"
    bad[11]["images"] = ["x.png"]
    files = write(tmp_path / "bad.jsonl", bad)
    with pytest.raises(
        UserError, match=r"line 4, messages\[1\]: an answer without 'content' \(null\) and without tool"
    ):
        prepare(files, None, tmp_path / "b", checkpoint, PrepareArgs(**QUIET))
    prepare(files, None, tmp_path / "b", checkpoint, PrepareArgs(bad_rows="drop", **QUIET))
    assert store.load(tmp_path / "b")[2]["rows"]["train"]["dropped"] == {
        "with an answer that has neither content nor tool calls": 1,
        "with roles out of order": 1,
        "not of the schema": 1,
        "with pictures, videos or sound": 1,
    }


def test_columns_may_be_a_mapping_or_a_list_for_both_scripts(checkpoint, tmp_path):
    entries = [{"q": f"{i} {i} {i}", "a": "yes", "p": "Be brief."} for i in range(100, 120)]
    write(tmp_path / "rows.jsonl", entries)
    lines = [",q,a,p", *(f"{n},{e['q']},{e['a']},{e['p']}" for n, e in enumerate(entries))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    samples = {}
    for script, name in (("json", "rows.jsonl"), ("csv", "rows.csv")):
        for columns in ("{instruction: q, response: a, system: p}", "[q, a]"):
            spec = spec_from_file_location(f"prepare_{script}", ROOT / "scripts" / f"prepare_{script}.py")
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            folder = tmp_path / script / columns[0]
            argv = [
                SOURCE[script],
                tmp_path / name,
                "--columns",
                columns,
                "--destination_path",
                folder,
                "--check",
                "false",
            ]
            module.main(**parse(module.main, [*map(str, argv), "--checkpoint_dir", str(checkpoint)]))
            samples[script, columns[0]] = store.load(folder)[0]
    for kind in "{[":
        assert samples["json", kind].ids.tolist() == samples["csv", kind].ids.tolist()
    assert len(samples["json", "{"].ids) > len(samples["json", "["].ids)
