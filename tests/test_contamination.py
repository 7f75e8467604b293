"""Every evaluation text that was planted in the training text is found, whatever was done to its case and spaces; text
that only speaks of the same things is not."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from conftest import assert_one_line_error
from script_processes import run

from lit_gpt.args.curation import ContaminationArgs
from lit_gpt.data import store
from lit_gpt.data.curate.contamination import check_contamination
from lit_gpt.data.curate.contamination.index import LEAST_WORDS, Index
from lit_gpt.data.curate.contamination.questions import Question, read_questions, task_files, words
from lit_gpt.errors import UserError
from lit_gpt.tokenizer import Tokenizer

NOUNS = ("baker", "river", "lamp", "engine", "island", "piano", "garden", "doctor", "window", "tiger", "coin", "bridge")
VERBS = ("sells", "paints", "follows", "repairs", "counts", "hides", "borrows", "measures", "lifts", "draws")
LINKS = ("and then", "because", "while", "although", "so that", "before", "until", "whenever")


def story(seed, n=6):
    """A text that no other seed gives, of words that all of them share."""
    rng = random.Random(seed)
    clauses = [
        f"the {rng.choice(NOUNS)} {rng.choice(VERBS)} {rng.randint(2, 99)} {rng.choice(NOUNS)}s" for _ in range(n)
    ]
    return f" {rng.choice(LINKS)} ".join(clauses)


def grams(text, n):
    w = words(text)
    return {tuple(w[i : i + n]) for i in range(len(w) - n + 1)}


@pytest.mark.parametrize("n_words", [5, 8, 13])
def test_overlaps_are_those_of_comparing_all_runs_of_words(n_words):
    rng = random.Random(n_words)
    pool = [f"w{i}" for i in range(3)]

    def text(low, high):
        return " ".join(rng.choices(pool, k=rng.randint(low, high)))

    questions = [Question("", (text(3, 20), text(0, 6)), (text(0, 18),)) for _ in range(9)]
    texts = [f"{text(0, 30)} other {text(0, 30)}" for _ in range(60)]
    hits = Index(questions, [0] * 9, n_words).search(texts)
    wanted = set()
    for t, whole in enumerate(texts):
        for q, question in enumerate(questions):
            for kind in ("asked", "answers"):
                for part in getattr(question, kind):
                    n = min(n_words, len(words(part)))
                    if len(words(part)) >= LEAST_WORDS[kind] and grams(part, n) & grams(whole, n):
                        wanted.add((t, q, kind == "answers"))
    assert (
        set(zip(hits.text.tolist(), hits.question.tolist(), hits.is_answer.astype(bool).tolist(), strict=True))
        == wanted
    )
    assert len(wanted) > 5


@pytest.fixture
def evaluation(tmp_path):
    """A folder with three sets of 30 questions: JSON lines, a JSON list and CSV."""
    folder = tmp_path / "evals"
    folder.mkdir()
    rows = [{"question": f"{story(i)}. How many?", "answer": f"{story(i + 500)} #### {i}"} for i in range(30)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [
        {"question": f"Who {story(i, 1)}?", "mc1_targets": {f"It is {story(i + 700, 2)}": 1, "Nobody": 0}}
        for i in range(100, 130)
    ]
    (folder / "who.json").write_text(json.dumps(rows))
    lines = [f'"{story(i, 3)}","{story(i + 900, 1)}","https://example.com/{i}"' for i in range(200, 230)]
    (folder / "table.csv").write_text("Premise,Label,Source\n" + "\n".join(lines))
    return folder


@pytest.fixture
def prepared(checkpoint, tmp_path):
    tokenizer = Tokenizer(checkpoint)

    def write(texts, name="set"):
        rows = [tokenizer.encode(text, eos=True) for text in texts]
        splits = {
            "train": store.stack([(ids, ids) for ids in rows]),
            "val": store.stack([(ids, ids) for ids in rows[4:7]]),
        }
        meta = {"checkpoint_dir": str(checkpoint), "tokenizer": tokenizer.fingerprint(), "prompt_style": "alpaca"}
        counts = {name: len(s) for name, s in splits.items()}
        store.save(tmp_path / name, splits, {**meta, "samples": counts, "max_seq_length": 512})
        return tmp_path / name

    return write


CLEAN = [f"{story(i, 8)}. {story(i + 5000, 3)}" for i in range(3000, 3040)]


def planted(evaluation):
    """Texts that hold evaluation texts, by (task, question)."""
    sums, who, table = (list(read_questions(evaluation / f)) for f in ("sums.jsonl", "who.json", "table.csv"))
    thirteen = " ".join(sums[4].asked[0].split()[5:18])
    return {
        ("sums", 0): f"Answer this. {sums[0].asked[0]}\n### Response: {sums[0].answers[0]}",
        ("sums", 1): sums[1].asked[0].upper().replace(" ", " \n "),
        ("sums", 2): sums[2].asked[0].replace(" the ", " <the>, "),
        ("sums", 3): f"I think that {sums[3].answers[0]}, or not",
        ("sums", 4): f"{CLEAN[0]} {thirteen} {CLEAN[1]}",
        ("who", 0): f"A riddle: {who[0].asked[0]}",
        ("who", 1): f"{CLEAN[2]} {who[1].answers[0]}",
        ("table", 7): f"x {table[7].asked[0]} y",
        ("table", 8): f"{table[8].asked[0]} {table[8].answers[0]}",
    }


def test_all_that_was_planted_is_found_and_nothing_else(evaluation, prepared, capsys):
    plants = planted(evaluation)
    folder = prepared([*CLEAN, *plants.values()])
    found = check_contamination(folder, ContaminationArgs(evaluation))
    numbers = {"sums": 0, "who": 30, "table": 60}
    order = {name: i * 30 for i, name in enumerate(found)}
    assert set(found) == set(numbers)
    got = {(name, o.question - order[name]): o for name, all_of_it in found.items() for o in all_of_it}
    assert set(got) == set(plants) and sum(map(len, found.values())) == len(plants)
    assert [got[key].row for key in plants] == list(range(40, 49))
    assert {key for key, o in got.items() if o.answered} == {("sums", 0), ("sums", 3), ("who", 1), ("table", 8)}
    assert {key for key, o in got.items() if not o.asked} == {("sums", 3), ("who", 1)}
    out = capsys.readouterr().out
    assert "sums: 5 of 30 questions overlap, 2 of them with an answer, in 5 rows" in out
    assert "sums.jsonl, line 1, in sample 40 of train (question and answer):" in out
    assert story(0)[:60] in out


def test_text_of_its_own_gives_none(evaluation, prepared):
    assert not any(check_contamination(prepared(CLEAN), ContaminationArgs(evaluation)).values())
    sums = list(read_questions(evaluation / "sums.jsonl"))
    twelve = [" ".join(q.asked[0].split()[3:15]) for q in sums]  # one word too few
    assert not any(
        check_contamination(prepared([f"{t} {CLEAN[0]}" for t in twelve]), ContaminationArgs(evaluation)).values()
    )


def test_what_a_task_always_says_is_no_overlap(tmp_path, prepared):
    phrase = "Choose the best of the following four answers to the question that is asked below, and say why."
    rows = [{"instruction": phrase, "question": f"Who {story(i, 2)}?", "answer": "B"} for i in range(40)]
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, rows)))
    args = ContaminationArgs({"mine": tmp_path / "e.jsonl"})
    assert check_contamination(prepared([f"{phrase} {t}" for t in CLEAN]), args) == {"mine": []}
    found = check_contamination(prepared([*CLEAN, f"{phrase} Who {story(7, 2)}? B"]), args)["mine"]
    assert [(o.row, o.question, o.answered) for o in found] == [(40, 7, True)]


def test_drop_writes_the_set_without_them(evaluation, prepared, tmp_path):
    plants = planted(evaluation)
    folder = prepared([*CLEAN[:5], *plants.values(), *CLEAN[5:]])
    args = ContaminationArgs(evaluation, drop=True, destination_path=tmp_path / "clean")
    check_contamination(folder, args)
    before, after = store.load(folder), store.load(tmp_path / "clean")
    rows = [i for i in range(len(before[0])) if not 5 <= i < 5 + len(plants)]
    assert [x.tolist() for i in range(len(rows)) for x in after[0][i]] == [
        x.tolist() for i in rows for x in before[0][i]
    ]
    meta = after[2]
    assert meta["rows"]["train"] == {"read": 49, "kept": 40, "dropped": {"in an evaluation set": 9}, "cut": {}}
    assert meta["samples"] == {"train": 40, "val": 1} and meta["decontaminated"]["dropped"] == {"train": 9, "val": 2}
    assert meta["tokens"]["train"] == len(after[0].ids) and meta["tokenizer"] == before[2]["tokenizer"]
    assert not any(check_contamination(tmp_path / "clean", ContaminationArgs(evaluation)).values())
    with pytest.raises(UserError, match=r"clean holds a prepared data set.*--overwrite true"):
        check_contamination(folder, args)
    args = replace(args, overwrite=True)
    with pytest.raises(UserError, match="no row of train is left"):
        check_contamination(prepared(list(plants.values())[:3]), args)
    assert len(store.load(tmp_path / "clean")[0]) == 40


def test_files_are_found_and_wrong_ones_named(evaluation, tmp_path):
    assert set(task_files(evaluation)) == {"sums", "who", "table"}
    assert task_files({"sums": evaluation}) == {"sums": evaluation / "sums.jsonl"}
    assert set(task_files({"all": evaluation})) == {"all/sums", "all/who", "all/table"}
    assert task_files({"x": evaluation / "who.json"}) == {"x": evaluation / "who.json"}
    with pytest.raises(UserError, match="there is no"):
        task_files({"x": tmp_path / "none"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file that ends with"):
        task_files(tmp_path / "empty")
    (tmp_path / "a.jsonl").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"a.jsonl, entry 1.*expected an object"):
        list(read_questions(tmp_path / "a.jsonl"))
    for bad in ({}, {"task_data": tmp_path, "drop": True}, {"task_data": tmp_path, "n_words": 2}):
        with pytest.raises(UserError):
            ContaminationArgs(**bad)


def test_words_of_other_scripts_count_too():
    assert words("What's the \uff37ord, naïve\uff1f") == ["what", "s", "the", "word", "naïve"]
    assert words("你好 world") == ["你", "好", "world"] == words("你好world")
    q = Question("", ("水は百度で沸騰します",), ())
    assert Index([q], [0], 13).search(["問い 水は百度で沸騰します。", "水は百度で凍ります"]).text.tolist() == [0]


def test_the_script_takes_a_folder_and_a_mapping(evaluation, prepared, tmp_path):
    folder = prepared([*CLEAN, *planted(evaluation).values()])
    mapping = f"{{sums: {evaluation}/sums.jsonl}}"
    done = run("scripts/check_contamination.py", "--data_dir", folder, "--task_data", mapping, cwd=tmp_path)
    assert done.returncode == 0 and "sums: 5 of 30 questions overlap" in done.stdout, done.stderr
    assert "who" not in done.stdout
    assert_one_line_error(run("scripts/check_contamination.py", cwd=tmp_path), "--task_data is missing")
    assert np.load(folder / "train.offsets.npy").shape == (50,)
