"""Preferences of every known layout become the same pairs, and what is dropped or truncated is said."""

import json

import numpy as np
import pytest
from conftest import assert_one_line_error
from script_processes import run

from lit_gpt.args import PrepareArgs
from lit_gpt.args.curation import CheckArgs
from lit_gpt.data import store
from lit_gpt.data.answers import judged_alone, read_answers, with_others
from lit_gpt.data.curate.check import check
from lit_gpt.data.prepare.account import Counts
from lit_gpt.data.prepare.preferences.encoder import PreferenceEncoder
from lit_gpt.data.prepare.preferences.layouts import parse_preference, preference_columns
from lit_gpt.data.prepare.run import Files, prepare
from lit_gpt.errors import UserError
from lit_gpt.tokenizer import Tokenizer

ASKED, GOOD, BAD = "What is a pond?", "A small lake.", "No idea."


def message(role, content):
    return {"role": role, "content": content}


def said(answer, asked=ASKED):
    return [message("user", asked), message("assistant", answer)]


LAYOUTS = {
    "trl texts": {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
    "trl messages": {"prompt": said("")[:1], "chosen": said(GOOD)[1:], "rejected": said(BAD)[1:]},
    "trl implicit messages": {"chosen": said(GOOD), "rejected": said(BAD)},
    "trl implicit texts": {"chosen": f"{ASKED} {GOOD}", "rejected": f"{ASKED} {BAD}"},
    "UltraFeedback binarized": {"prompt": ASKED, "prompt_id": "x", "chosen": said(GOOD), "messages": said(GOOD)}
    | {"rejected": said(BAD), "score_chosen": 8.0, "score_rejected": 4.0},
    "UltraFeedback": {"instruction": ASKED, "models": ["a", "b", "c"], "completions": [
        {"response": "A lake.", "overall_score": 6.0}, {"response": BAD, "overall_score": 2.0},
        {"response": GOOD, "overall_score": 8.5}]},
    "HH-RLHF": {k: f"\n\nHuman: {ASKED}\n\nAssistant: {v}" for k, v in (("chosen", GOOD), ("rejected", BAD))},
    "Intel's Orca": {"system": "", "question": ASKED, "chosen": GOOD, "rejected": BAD},
    "Argilla's Orca": {"system": "", "input": ASKED, "chosen": GOOD, "rejected": BAD, "status": "unchanged"},
    "distilabel": {"instruction": ASKED, "chosen_response": GOOD, "rejected_response": BAD},
    "LLaMA-Factory": {"conversations": [{"from": "human", "value": ASKED}], "chosen": {"from": "gpt", "value": GOOD}}
    | {"rejected": {"from": "gpt", "value": BAD}},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pair(layout):
    (found,) = parse_preference(LAYOUTS[layout], "f", "line 1")
    assert [[(t.role, t.text.strip()) for t in row.turns] for row in found.answers] == [
        [("user", ASKED), ("assistant", answer)] for answer in (GOOD, BAD)
    ]
    assert found.n_prompt == 1


def test_earlier_answers_are_part_of_the_prompt_and_systems_are_kept():
    before = [message("system", "Be brief."), *said("A pond is water.", "What?"), message("user", "And a lake?")]
    entry = {"prompt": before, "chosen": said(GOOD)[1:], "rejected": said(BAD)[1:]}
    (found,) = parse_preference(entry, "f", "line 1")
    assert [t.taught for t in found.turns if t.role == "assistant"] == [False, True]
    assert found.system == "Be brief." and found.n_prompt == 4
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: {}"
    (found,) = parse_preference({"chosen": text.format("d"), "rejected": text.format("e")}, "f", "line 1")
    assert [(t.role, t.text, t.taught) for t in found.turns][1:] == [
        ("assistant", "b", False), ("user", "c", True), ("assistant", "d", True)]  # fmt: skip


@pytest.mark.parametrize("value", [True, "true", 1, False, "False", 0])
def test_labels_are_verdicts(value):
    (found,) = parse_preference({"prompt": ASKED, "completion": GOOD, "label": value}, "f", "line 1")
    assert found.desirable is (value in (True, "true", 1)) and found.answers == (found,)


def test_what_makes_no_pair_is_named():
    for entry, part in (
        ({"prompt": ASKED, "chosen": GOOD}, "expected the keys chosen+rejected"),
        ({"chosen": GOOD, "rejected": BAD}, "no prompt"),
        ({"chosen": said(GOOD), "rejected": said(BAD, "Why?")}, "do not begin with the same turn"),
        ({"prompt": ASKED, "completion": GOOD, "label": "perhaps"}, "must be true or false"),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "status": "tie"}, "a tie"),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": GOOD}, "equal"),
    ):
        with pytest.raises(UserError, match=part.replace("+", r"\+")):
            parse_preference(entry, "f", "line 1")
    (found,) = preference_columns({"prompt": "q", "chosen": "a", "rejected": "b"})(
        {"q": "x", "a": "y", "b": "z"}, "f", "1"
    )
    assert [row.response for row in found.answers] == ["y", "z"]
    with pytest.raises(UserError, match="needs chosen and rejected, or completion and label"):
        preference_columns({"prompt": "q", "chosen": "a"})


def encoded(checkpoint, entries, **args):
    rows = [row for entry in entries for row in parse_preference(entry, "f", "line 1")]
    tokenizer, counts = Tokenizer(checkpoint), Counts()
    encoder = PreferenceEncoder(tokenizer, PrepareArgs(prompt_style="plain", **args), args.get("max_seq_length") or 512)
    return [[tokenizer.decode(part) for part in sides(*sample[:2])] for sample in encoder.encode(rows, counts)], counts


def sides(ids, labels):
    n = next(i for i, label in enumerate(labels) if label != store.IGNORE)
    return ids[:n], ids[n:]


def test_truncation_shortens_the_prompt_of_both_answers_alike_and_never_an_answer_unsaid(checkpoint):
    long = {"prompt": "a b " * 20, "chosen": "yes " * 20, "rejected": "no"}
    for truncation, reason in (("drop", "longer than 120 tokens"), ("cut_prompt", None), ("cut_end", None)):
        limit = {"max_seq_length": 120, "truncation": truncation}
        found, counts = encoded(checkpoint, [long, LAYOUTS["trl texts"]], **limit)
        assert (counts.read, counts.kept, dict(counts.dropped)) == (
            2,
            1 if reason else 2,
            {reason: 1} if reason else {},
        )
        if truncation == "cut_prompt":
            assert found[0][0] == found[1][0] and len(found[0][0]) < 80, "both answers follow the same prompt"
            assert [answer for _, answer in found[:2]] == ["yes " * 20, "no"]
            assert counts.cut == {"in the prompt": 1}
        if truncation == "cut_end":
            assert counts.cut["at the end"] == 1
    with pytest.raises(UserError, match="pass --truncation"):
        encoded(checkpoint, [long], max_seq_length=120, truncation="error")


def test_a_pair_is_dropped_as_a_whole_and_counted_once(checkpoint):
    entries = [{"prompt": ASKED, "chosen": GOOD, "rejected": " "}, LAYOUTS["trl texts"]]
    found, counts = encoded(checkpoint, entries)
    assert len(found) == 2 and (counts.read, counts.kept) == (2, 1)
    assert counts.dropped == {"empty response": 1}


def write(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_the_script_prepares_pairs_that_are_read_back_and_checked(checkpoint, tmp_path, capsys):
    entries = [
        {"prompt": f"Say {w} {n}", "chosen": f"{w} " * (n + 3), "rejected": w} for w in "abcdef" for n in range(4)
    ]
    asked = "How many legs has the spider that sits in my kitchen under the old table?"
    entries += [
        {"prompt": "x", "chosen": "same", "rejected": "same"},
        {"prompt": asked, "chosen": "8 8 8", "rejected": "8"},
    ]
    rows = write(tmp_path / "pairs.jsonl", entries)
    evaluation = write(tmp_path / "eval.jsonl", [{"question": asked, "answer": "eight"}])
    flags = ("--json_path", rows, "--destination_path", tmp_path / "d", "--test_split_fraction", "0.2")
    command = ("scripts/prepare_preferences.py", "--checkpoint_dir", checkpoint, *flags, "--task_data", evaluation)
    p = run(*map(str, command), cwd=tmp_path)
    assert p.returncode == 0, p.stderr
    assert "1 with equal answers" in p.stdout and "longer one in 100% of the pairs" in p.stdout, p.stdout
    assert "warning" in p.stdout and "1 of 1 questions overlap" in p.stdout
    *splits, meta = store.load(tmp_path / "d", judged=True)
    answers = [read_answers(tmp_path / "d", name, s, meta) for name, s in zip(("train", "val"), splits, strict=True)]
    assert sum(map(len, answers)) == 25 and meta[store.PREFERENCES] == "pairs"
    tokenizer = Tokenizer(checkpoint)
    for split in answers:
        for i in range(len(split)):
            good, bad = (tokenizer.decode(split.targets(a).tolist()) for a in (2 * i, 2 * i + 1))
            assert (
                good.startswith(bad + " " + bad)
                and (split.of(i)[0][0][: len(split.prompt(i))] == split.prompt(i)).all()
            )
    with pytest.raises(UserError, match=r"finetune/preference\.py"):
        store.load(tmp_path / "d")
    p = run("finetune/lora.py", "--checkpoint_dir", str(checkpoint), "--data_dir", str(tmp_path / "d"), cwd=tmp_path)
    assert_one_line_error(p, "holds preferences")


def labelled(checkpoint, folder, entries, **args):
    files = Files((write(folder / "rows.jsonl", entries),), parse_preference)
    settings = PrepareArgs(prompt_style="plain", check=False, test_split_fraction=0.25, **args)
    prepare(files, None, folder / "d", checkpoint, args=settings, encoder=PreferenceEncoder)
    *splits, meta = store.load(folder / "d", judged=True)
    return [read_answers(folder / "d", name, s, meta) for name, s in zip(("train", "val"), splits, strict=True)]


def test_labels_go_with_their_answers_where_others_are_dropped(checkpoint, tmp_path, capsys):
    entries = [{"prompt": f"p{w} {n}", "completion": f"{'good' if n % 2 else 'bad'} {w}", "label": n % 2 == 1}
               for w in "abcdefgh" for n in range(3)]  # fmt: skip
    entries.insert(3, {"prompt": "none", "completion": "", "label": True})
    train, val = labelled(checkpoint, tmp_path, entries)
    tokenizer = Tokenizer(checkpoint)
    for split in (train, val):
        texts = [tokenizer.decode(split.targets(i).tolist()) for i in range(len(split))]
        assert [text.startswith("good") for text in texts] == split.desirable.tolist()
    assert len(train) + len(val) == 24
    check(tmp_path / "d", CheckArgs(n_samples=0))
    assert "of the" in (out := capsys.readouterr().out) and "desired ones" in out
    mixed = [*entries, LAYOUTS["trl texts"]]
    with pytest.raises(UserError, match="some entries have two answers"):
        labelled(checkpoint, tmp_path, mixed, overwrite=True)


def test_the_check_names_prompts_that_both_splits_have(checkpoint, tmp_path, capsys):
    pairs = [{"prompt": f"p {n}", "chosen": "a", "rejected": "b"} for n in range(6)]
    files = [
        Files((write(tmp_path / name, part),), parse_preference) for name, part in (("t", pairs), ("v", pairs[3:4]))
    ]
    prepare(*files, tmp_path / "d", checkpoint, args=PrepareArgs(prompt_style="plain"), encoder=PreferenceEncoder)
    assert "1 of 1 rows have a prompt of train" in capsys.readouterr().out


def test_pairs_are_two_judged_answers_and_get_answers_of_other_rows(checkpoint, tmp_path):
    pairs = [{"prompt": f"p {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(8)]
    train, _ = labelled(checkpoint, tmp_path, pairs)
    alone = judged_alone(train)
    assert len(alone) == 2 * len(train) and alone.desirable.tolist() == [True, False] * len(train)
    others, tokenizer = with_others(alone, 2), Tokenizer(checkpoint)
    assert len(others) == len(alone) and np.array_equal(
        others.lengths, [sum(len(x[0]) for x in others.of(i)) for i in range(len(others))]
    )
    for i in range(len(others)):
        own, other = (tokenizer.decode(others.targets(a).tolist()) for a in (2 * i, 2 * i + 1))
        assert own.split()[0] == other.split()[0] and own != other  # of another pair, judged alike
        (a, _), (b, _) = others.of(i)
        n = len(others.prompt(i))
        assert np.array_equal(a[:n], b[:n])
