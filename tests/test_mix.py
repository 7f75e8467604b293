"""A mixture has what was asked for of each source, keeps validation apart, and says how it was made."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, assert_one_line_error
from script_processes import run

from lit_gpt.args import PrepareArgs
from lit_gpt.args.curation import AugmentArgs, ContaminationArgs, MixArgs
from lit_gpt.data import store
from lit_gpt.data.curate.contamination import check_contamination
from lit_gpt.data.curate.mix import leaks, mix
from lit_gpt.data.curate.mix.amounts import draw, shares
from lit_gpt.data.prepare.run import Files, prepare
from lit_gpt.errors import UserError
from lit_gpt.tokenizer import Tokenizer

WORDS = ("river", "stone", "lamp", "green", "seven", "cloud", "paper", "music", "train", "apple", "winter", "glass")
QUIET = PrepareArgs(check=False, test_split_fraction=0.2)


def sentence(seed, n=12):
    return " ".join(np.random.default_rng(seed).choice(WORDS, n))


def write_rows(path, name, n):
    start = sum(map(ord, name)) * 1000
    rows = [{"instruction": f"{name} {sentence(start + i)}", "output": sentence(start + i + 500)} for i in range(n)]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def sources(checkpoint, tmp_path):
    """Two prepared sets of 40 and 20 training rows, and two files of 30 rows."""
    found = {}
    for name, n in (("one", 50), ("two", 25)):
        path = write_rows(tmp_path / f"{name}.json", name, n)
        prepare(Files((path,)), None, tmp_path / name, checkpoint, QUIET)
        found[name] = tmp_path / name
    for name in ("raw", "other"):
        found[name] = write_rows(tmp_path / f"{name}.json", name, 30)
    return found


def texts(samples, tokenizer):
    return [tokenizer.decode(samples[i][0].tolist()) for i in range(len(samples))]


def of(samples, tokenizer, name):
    return [t for t in texts(samples, tokenizer) if t.split("### Instruction:\n")[1].startswith(f"{name} ")]


def test_amounts_follow_weights_sizes_and_caps():
    sources = {"a": "x", "b": "y", "c": "z"}

    def amounts(**kwargs):
        return list(shares({"a": 100, "b": 50, "c": 10}, MixArgs(sources, **kwargs)).values())

    assert amounts() == [100, 50, 10]
    assert amounts(sizes={"a": 30, "c": 25}) == [30, 50, 25]
    assert amounts(caps={"a": 60, "c": 99}) == [60, 50, 10]
    assert amounts(sizes={"c": 100}, caps={"c": 40}) == [100, 50, 40]
    assert amounts(weights={"a": 1, "b": 1, "c": 1}) == [10, 10, 10]
    assert amounts(weights={"a": 2, "b": 2, "c": 1}, size=100) == [40, 40, 20]
    assert amounts(weights={"a": 1, "b": 1, "c": 1}, size=100) == [34, 33, 33]
    assert amounts(weights={"a": 8, "b": 1, "c": 1}, size=1000, caps={"c": 50}) == [800, 100, 50]
    for size in range(1, 60):
        assert sum(amounts(weights={"a": 0.7, "b": 0.2, "c": 0.1}, size=size)) == size


def test_rows_are_drawn_without_repeating_any_before_all_were_taken():
    for n in (0, 30, 60, 100, 230):
        rows = draw(100, n, "1:x")
        counts = np.bincount(rows, minlength=100)
        assert len(rows) == n and counts.max() - counts.min() <= 1 and rows.tolist() == sorted(rows)
    assert draw(100, 30, "1:x").tolist() == draw(100, 30, "1:x").tolist() != draw(100, 30, "2:x").tolist()


def test_prepared_and_raw_sources_join_and_validation_stays_apart(sources, checkpoint, tmp_path):
    tokenizer = Tokenizer(checkpoint)
    three = {name: sources[name] for name in ("one", "two", "raw")}
    args = MixArgs(three, sizes={"one": 15, "two": 50})
    mix(tmp_path / "mix", args, AugmentArgs(), QUIET, None)
    train, val, meta = store.load(tmp_path / "mix")
    parts = {name: (of(train, tokenizer, name), of(val, tokenizer, name)) for name in three}
    assert {name: (len(a), len(b)) for name, (a, b) in parts.items()} == {
        "one": (15, 10),
        "two": (50, 5),
        "raw": (24, 6),
    }
    assert not set(texts(train, tokenizer)) & set(texts(val, tokenizer))
    source = store.load(sources["two"])
    assert set(parts["two"][0]) == set(texts(source[0], tokenizer)) and parts["two"][1] == texts(source[1], tokenizer)
    prepare(Files((sources["raw"],)), None, tmp_path / "alone", checkpoint, QUIET)
    alone = store.load(tmp_path / "alone")
    assert parts["raw"] == (texts(alone[0], tokenizer), texts(alone[1], tokenizer))
    assert train.n_targets == sum((train[i][1] != store.IGNORE).sum() for i in range(len(train))) > 0
    recompute = meta["mix"]
    assert recompute["sizes"] == {"one": 15, "two": 50} and meta["seed"] == QUIET.seed
    for name in three:
        start, stop = recompute["sources"][name]["val"]
        assert texts(val, tokenizer)[start:stop] == parts[name][1]
        assert recompute["sources"][name]["path"] == str(three[name])
    assert meta["rows"]["train"] == {
        "read": 84, "kept": 89, "dropped": {"of one not drawn": 25}, "cut": {}, "repeated": 30
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_one_source_validates_on_no_other_trains_on(sources, checkpoint, tmp_path):
    """Rows that are there again, word for word or nearly, are left out; a source's own parts stay as they were."""
    held = json.loads((tmp_path / "one.json").read_text())
    val = texts(store.load(sources["one"])[1], Tokenizer(checkpoint))
    again = [row for row in held if any(row["instruction"] in text for text in val)]
    assert len(again) == 10
    nearly = [{**row, "output": row["output"] + " x"} for row in again[:5]] + again[5:]
    more = json.loads(sources["raw"].read_text())
    (tmp_path / "val.json").write_text(json.dumps([*json.loads(sources["other"].read_text()), *more[:2]]))
    for i, rows in enumerate((nearly, [*nearly, *more])):
        (tmp_path / f"again{i}.json").write_text(json.dumps(rows))
        files = [Files((tmp_path / f"{name}.json",)) for name in (f"again{i}", "val")]
        prepare(*files, tmp_path / f"again{i}", checkpoint, PrepareArgs(max_seq_length=400, check=False))
    mix(tmp_path / "m", MixArgs({"one": sources["one"], "b": tmp_path / "again1"}), AugmentArgs(), QUIET, None)
    train, _, meta = store.load(tmp_path / "m")
    assert meta["max_seq_length"] == 512
    tokenizer = Tokenizer(checkpoint)
    assert len(of(train, tokenizer, "raw")) == 30 and len(of(train, tokenizer, "one")) == 40 and len(train) == 70
    assert meta["mix"]["sources"]["b"]["available"] == 30
    assert meta["rows"]["train"] == {
        "read": 80, "kept": 70, "dropped": {"of b in another validation set": 10}, "cut": {}, "repeated": 0
    }  # fmt: skip
    args = MixArgs({"one": sources["one"], "b": tmp_path / "again1"}, weights={"one": 1, "b": 1})
    with pytest.raises(UserError, match=r"m holds a prepared data set.*--overwrite true"):
        mix(tmp_path / "m", args, AugmentArgs(), QUIET, None)
    mix(tmp_path / "m", args, AugmentArgs(), replace(QUIET, overwrite=True), None)
    assert store.load(tmp_path / "m")[2]["mix"]["sources"]["b"]["train"] == 30
    with pytest.raises(UserError, match="another source has all training rows of b for validation"):
        mix(tmp_path / "n", MixArgs({"one": sources["one"], "b": tmp_path / "again0"}), AugmentArgs(), QUIET, None)
    assert not (tmp_path / "n").exists()


def test_leaks_are_found_in_every_chunk(sources, checkpoint, monkeypatch):
    monkeypatch.setattr(leaks, "CHUNK", 7)
    tokenizer = Tokenizer(checkpoint)
    train = store.load(sources["one"])[0]
    wanted = [texts(train, tokenizer)[i] for i in (0, 13, 39)]
    assert leaks.like(train, wanted, tokenizer).nonzero()[0].tolist() == [0, 13, 39]
    assert not leaks.like(train, [], tokenizer).any()


def test_what_a_killed_mixture_left_is_removed_by_the_next_one(sources, checkpoint, tmp_path):
    folder = tmp_path / "mixes"
    code = (
        "import os, signal, lit_gpt.data.curate.mix.sources as s\n"
        "s.write_split = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from pathlib import Path\nfrom lit_gpt.data.curate.mix import mix\n"
        "from lit_gpt.args import PrepareArgs\nfrom lit_gpt.args.curation import AugmentArgs, MixArgs\n"
        f"mix(Path('{folder}/m'), MixArgs({{'raw': Path('{sources['raw']}')}}), AugmentArgs(), PrepareArgs(), "
        f"Path('{checkpoint}'))"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    left = sorted(p.name for p in folder.iterdir())
    assert killed.returncode == -9 and len(left) == 2 and left[0] == ".m.lock", (left, killed.stderr)
    mix(folder / "m", MixArgs({"raw": sources["raw"]}), AugmentArgs(), QUIET, checkpoint)
    assert [p.name for p in folder.iterdir()] == ["m"]


def test_a_mixed_and_cleaned_set_trains_and_one_of_another_chat_template_does_not(sources, checkpoint, tmp_path):
    place = tmp_path / "tiny"
    shutil.copytree(checkpoint, place)
    (place / "chat_template.jinja").write_text("{{ messages[0].content }}:{% if messages[1] %}{{ messages[1].content }}"
                                               "{{ eos_token }}{% endif %}")  # fmt: skip
    chat = PrepareArgs("chat_template", check=False)
    mix(tmp_path / "m", MixArgs({n: sources[n] for n in ("raw", "other")}), AugmentArgs(perturb=0.5), chat, place)
    (tmp_path / "eval.jsonl").write_text(json.dumps({"question": json.loads(sources["raw"].read_text())[3]["output"]}))
    args = ContaminationArgs(tmp_path / "eval.jsonl", n_words=8, drop=True, destination_path=tmp_path / "clean")
    check_contamination(tmp_path / "m", args)
    mixed, cleaned = (store.load(tmp_path / name) for name in ("m", "clean"))
    assert 0 < len(mixed[0]) - len(cleaned[0]) + len(mixed[1]) - len(cleaned[1]) <= 2 and cleaned[2]["mix"]
    train = [
        "--batch_size",
        4,
        "--micro_batch_size",
        4,
        "--max_steps",
        2,
        "--lora_r",
        2,
        "--log_interval",
        1,
        "--out_dir",
        tmp_path / "out",
    ]
    command = ["finetune/lora.py", "--checkpoint_dir", place, "--data_dir", tmp_path / "clean", *train]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0 and " step 2: loss" in done.stdout, done.stdout
    (said,) = re.findall(r"([\d,]+) tokens, the passes are (\d+)% full", done.stdout)
    n_passes = done.stdout.count(": loss ")
    assert int(said[1]) == round(100 * int(said[0].replace(",", "")) / (512 * n_passes))
    assert json.loads((tmp_path / "out/finetuned.json").read_text())["prompt_style"] == "chat_template"
    (place / "chat_template.jinja").write_text("{{ messages[0].content }}")
    done = run(*command, "--overwrite", "true", cwd=tmp_path)
    assert_one_line_error(done, "another chat template than", str(place), "prepare it again")
    done = run("scripts/check_data.py", "--data_dir", tmp_path / "clean", cwd=tmp_path)
    assert_one_line_error(done, "another chat template than")


def test_a_file_joins_a_source_in_a_chat_template_that_was_given_more(sources, checkpoint, tmp_path):
    place = tmp_path / "tiny"
    shutil.copytree(checkpoint, place)
    (place / "chat_template.jinja").write_text("{{ '!' if loud }}{{ messages[0].content }}:{% if messages[1] %}"
                                               "{{ messages[1].content }}{{ eos_token }}{% endif %}")  # fmt: skip
    chat = PrepareArgs("chat_template", check=False, test_split_fraction=0.2, template_kwargs={"loud": True})
    prepare(Files((sources["raw"],)), None, tmp_path / "loud", place, chat)
    mix(tmp_path / "m", MixArgs({"loud": tmp_path / "loud", "other": sources["other"]}), AugmentArgs(), QUIET, place)
    samples, _, meta = store.load(tmp_path / "m")
    assert meta["prompt_style"] == 'chat_template {"loud": true}' and "loud" in meta["chat_template"]
    assert all(text.lstrip().startswith("!") for text in texts(samples, Tokenizer(place)))


def test_the_same_seed_gives_the_same_files_and_another_one_other_rows(sources, checkpoint, tmp_path):
    args = MixArgs({"one": sources["one"], "raw": sources["raw"]}, weights={"one": 1, "raw": 2}, size=30)
    augment = AugmentArgs(perturb=0.5)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        mix(tmp_path / name, args, augment, PrepareArgs(check=False, seed=seed), checkpoint)
    a, b, c = ((tmp_path / name / "train.ids.npy").read_bytes() for name in "abc")
    assert a == b != c
    meta = [json.loads((tmp_path / name / "meta.json").read_text()) for name in "ab"]
    assert meta[0] == meta[1] and meta[0]["mix"]["sources"]["raw"]["made"]["mild_mix"] > 0
    assert meta[0]["mix"]["augment"]["perturb"] == 0.5


def test_augmentation_changes_training_rows_only(sources, checkpoint, tmp_path):
    tokenizer = Tokenizer(checkpoint)
    args = MixArgs({"raw": sources["raw"]})
    mix(tmp_path / "plain", args, AugmentArgs(), QUIET, checkpoint)
    lower = AugmentArgs(perturb=1, perturbations=("spaces",))
    mix(tmp_path / "made", args, lower, QUIET, checkpoint)
    plain, made = store.load(tmp_path / "plain"), store.load(tmp_path / "made")
    assert texts(plain[1], tokenizer) == texts(made[1], tokenizer)
    assert len(made[0]) == 2 * len(plain[0]) and set(texts(plain[0], tokenizer)) < set(texts(made[0], tokenizer))
    answers = [t.split("### Response:\n")[1] for t in texts(made[0], tokenizer)]
    assert answers[::2] == answers[1::2]


def test_what_does_not_go_together_is_named(sources, checkpoint, tmp_path):
    prepare(Files((tmp_path / "two.json",)), None, tmp_path / "plain", checkpoint, PrepareArgs("plain", check=False))

    def fails(message, sources, augment=AugmentArgs(), place=checkpoint, **kwargs):
        with pytest.raises(UserError, match=message):
            mix(tmp_path / "m", MixArgs(sources, **kwargs), augment, QUIET, place)
        assert not (tmp_path / "m").exists()

    fails(
        r"one and b differ in prompt_style \('alpaca' and 'plain'\)", {"one": sources["one"], "b": tmp_path / "plain"}
    )
    fails("--sources: x is not there", {"x": tmp_path / "none.json"})
    fails("--checkpoint_dir is missing", {"raw": sources["raw"]}, place=None)
    fails("all --sources are prepared", {"one": sources["one"]}, AugmentArgs(perturb=0.1))
    for message, kwargs in {
        "--weights names 'z'; --sources are one": {"weights": {"z": 1}},
        "--sizes: one 0 must be more": {"sizes": {"one": 0}},
        "contradict": {"sizes": {"one": 1}, "weights": {"one": 1}},
        "--size goes with --weights": {"size": 3},
    }.items():
        fails(message, {"one": sources["one"]}, **kwargs)
    with pytest.raises(UserError, match="--weights has none for two"):
        MixArgs({"one": tmp_path, "two": tmp_path}, weights={"one": 1})
    meta = tmp_path / "two" / "meta.json"
    meta.write_text(meta.read_text().replace('"tokenizer": "', '"tokenizer": "0'))
    fails("differ in tokenizer", {"one": sources["one"], "two": sources["two"]})
    before = {path: path.read_bytes() for path in sources["one"].iterdir() if path.is_file()}
    with pytest.raises(UserError, match="one is the source x; pass another folder"):
        mix(tmp_path / "two" / ".." / "one", MixArgs({"x": sources["one"]}), AugmentArgs(), QUIET, checkpoint)
    assert before == {path: path.read_bytes() for path in sources["one"].iterdir() if path.is_file()}


def test_the_script_mixes_and_checks(sources, checkpoint, tmp_path):
    names = f"{{one: {sources['one']}, mine: {sources['raw']}}}"
    flags = ["--sources", names, "--sizes", "{mine: 10}", "--perturb", "0.5", "--perturbations", "[lowercase, typos]"]
    done = run("scripts/prepare_mix.py", *flags, "--destination_path", tmp_path / "m", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "one: 40 of 40 training rows, 10 for validation" in done.stdout
    assert "a supervised end of sequence ends each of 50 rows" in " ".join(done.stdout.split())
    assert len(store.load(tmp_path / "m")[0]) == 50
    assert_one_line_error(run("scripts/prepare_mix.py", cwd=tmp_path), "--sources is missing")
