"""Answers are graded by checkers, and become rows and pairs that the prepare scripts read."""

import json
import shutil

import pytest

from lit_gpt.args.rollouts import CheckerArgs, KeepArgs, SampleArgs
from lit_gpt.data.prepare.preferences.layouts import parse_preference
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.sources import read_rows
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.grading.checkers import checker_of
from lit_gpt.merge.record import MERGED
from lit_gpt.rollouts.run import Answering, sample_answers
from lit_gpt.rollouts.sampled import Graded
from lit_gpt.rollouts.written import PAIRS, ROWS, require_no_answers, write

CASES = [  # checker, answer, expected, score
    ("number", "So 3 + 4 = 7.", "#### 7", 1),
    ("number", "It costs $1,250.50 in all", "1250.5", 1),
    ("number", "7 of them, no: 8", "7", 0),
    ("number", "-3", "3", 0),
    ("number", "50%", "0.5", 1),
    ("number", "none", "7", 0),
    ("choice", "The answer is (B).", "B", 1),
    ("choice", "b", "B", 1),
    ("choice", "A or B? I say C", "B", 0),
    ("choice", "Because", "B", 0),
    ("exact", " yes\n", "yes", 1),
    ("exact", "Yes", "yes", 0),
    ("json", '{"b": 1.0, "a": [true]}', '{"a":[true],"b":1}', 1),
    ("json", '{"a": [1]}', '{"a": [true]}', 0),
    ("json", '{"a": 1', '{"a": 1}', 0),
    ("regex", "maybe 12 cats", r"\d+ cats", 1),
    ("regex", "no cats", r"\d+ cats", 0),
]


@pytest.mark.parametrize(("name", "answer", "expected", "score"), CASES)
def test_checkers(name, answer, expected, score):
    assert checker_of(CheckerArgs(name))("asked", answer, expected) == score


PROGRAM = """
import time
def score(prompt, answer, expected):
    print("noise that must not get among the scores")
    if answer == "loop":
        time.sleep(60)
    if answer == "eat":
        return len(bytearray(8 * 1024**3))
    if answer == "end":
        raise SystemExit
    return 0.5 if answer == "half" else answer == prompt + expected
"""


def test_a_program_of_the_users_grades_within_limits(tmp_path):
    (tmp_path / "mine.py").write_text(PROGRAM)
    check = checker_of(CheckerArgs("python", checker_file=tmp_path / "mine.py", checker_seconds=2))
    found = [check("a", answer, "b") for answer in ("ab", "half", "loop", "ab", "eat", "end", "ab", "x")]
    assert found == [1.0, 0.5, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0], (
        "a slow, greedy or dead one is wrong, and the next is fine"
    )
    for text, part in (("x = 1", "no function score"), ("1 / 0", "ZeroDivisionError")):
        (tmp_path / "bad.py").write_text(text)
        with pytest.raises(UserError, match=part):
            checker_of(CheckerArgs("python", checker_file=tmp_path / "bad.py"))


def test_rows_and_pairs_are_of_prompts_that_are_solved_sometimes(tmp_path, capsys):
    rows = [Row.single("Add.", f"{n} and 1", str(n + 1)) for n in range(3)]
    texts = [("1", "one", "1 ", "2"), ("2", "2", "2", "2"), ("no", "no", "0", "")]
    scores = [(1, 0, 1, 0), (1, 1, 1, 1), (0, 0, 0, 0)]
    found = [Graded(*part, (1,) * 4) for part in zip(rows, texts, scores, strict=True)]
    write(tmp_path, found, KeepArgs(max_solved=0.9, right_answers=2, pairs=3))
    assert (
        "6 of 12 answers are right" in (out := capsys.readouterr().out)
        and "always 1" in out
        and "never solved 1" in out
    )
    (row,) = read_rows(tmp_path / ROWS)
    assert row == Row.single("Add.", "0 and 1", "1")
    pairs = [json.loads(line) for line in (tmp_path / PAIRS).read_text().splitlines()]
    found = [parse_preference(pair, "f", "1")[0] for pair in pairs]
    assert [(p.response, p.rejected.response) for p in found] == [("1", "2"), ("1", "one")]
    assert found[0].instruction == "Add." and found[0].context == "0 and 1", "asked as the row asks"


def test_the_engine_answers_alike_for_a_seed_and_is_graded(checkpoint, tmp_path):
    entries = [{"instruction": f"say {n}", "input": "", "output": "t"} for n in range(3)]
    (tmp_path / "rows.json").write_text(json.dumps(entries))
    sample, fabric = SampleArgs(k=3, max_new_tokens=6), make_fabric("32-true", 1)
    settings = {"columns": None, "check": CheckerArgs("regex", pattern="."), "sample": sample, "keep": KeepArgs()}
    one, two = (
        sample_answers(fabric, Answering(checkpoint), tmp_path / "rows.json", tmp_path / name, **settings)
        for name in "ab"
    )
    assert [g.texts for g in one] == [g.texts for g in two] and len({t for g in one for t in g.texts}) > 5
    assert all(score == 0 for g in one for score, n in zip(g.scores, g.n_tokens, strict=True) if n == 6), "cut off"


def test_answers_are_not_replaced_unasked(tmp_path):
    write(tmp_path, [Graded(Row.single("Add.", "1 and 1", "2"), ("2",), (1,), (1,))], KeepArgs())
    with pytest.raises(UserError, match=r"holds sampled answers.*--overwrite true"):
        require_no_answers(tmp_path, overwrite=False)
    require_no_answers(tmp_path, overwrite=True)
    require_no_answers(tmp_path / "new", overwrite=False)


def test_a_merged_checkpoint_is_asked_as_it_was_trained(checkpoint, tmp_path):
    merged = tmp_path / "merged"
    shutil.copytree(checkpoint, merged)
    (merged / MERGED).write_text(json.dumps({"prompt_style": "alpaca", "runs": []}))
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": "say", "input": "", "output": "t"}]))
    settings = {"columns": None, "check": CheckerArgs("exact"), "sample": SampleArgs(k=3, max_new_tokens=6)}
    settings["keep"] = KeepArgs()

    def texts(*answering):
        fabric = make_fabric("32-true", 1)
        answering = Answering(*answering, quantize="none")
        (found,) = sample_answers(fabric, answering, tmp_path / "rows.json", tmp_path / "out", **settings)
        return found.texts

    assert texts(merged) == texts(checkpoint, None, "alpaca") != texts(checkpoint, None, "plain") == texts(checkpoint)
