"""Held-out rows come from all of the data, and near-identical prompts stay on one side."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from lit_gpt.data.prepare import minhash
from lit_gpt.data.prepare.apart import groups_apart, own_parts
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.similar import groups
from lit_gpt.data.prepare.sources import read_rows
from lit_gpt.data.prepare.split import held_out, prompt_of
from lit_gpt.data.prepare.texts import Texts
from lit_gpt.errors import UserError
from lit_gpt.prompts import Turn

GUIDELINES = ROOT.parent / "shared" / "cases" / "guidelines_mixed" / "data.jsonl"
WORDS = [a + b for a in ("ba", "ne", "sto", "gri", "mu", "ol") for b in ("lun", "mor", "tisk", "nald", "bern", "quo")]
FIXED = (
    "You label short messages. Read the whole message before you decide. Use the label complaint when the writer "
    "reports that something went wrong, praise when the writer is pleased, question when the writer wants to know "
    "something, and other in all remaining cases. Do not explain your label, and do not write anything after it."
)


def message(rng, n=9):
    return " ".join(rng.choices(WORDS, k=n))


def shares(out, sizes):
    """Held-out rows of each stretch of so many rows."""
    return [int(part.sum()) for part in np.split(out, np.cumsum(sizes)[:-1])]


@pytest.mark.parametrize(
    "shape",
    [
        FIXED + " Message: {}",
        "Message: {} " + FIXED,
        FIXED[:150] + "\n{}\n" + FIXED[150:],
        FIXED + "\n\nMessage:\n{}\nLabel:",
    ],
    ids=["before", "after", "around", "lines"],
)
def test_fixed_instructions_do_not_keep_rows_from_being_held_out(shape):
    rng = random.Random(1)
    prompts = [shape.format(message(rng)) for _ in range(150)] + [message(rng, 12) for _ in range(50)]
    assert len(set(groups(prompts)[:150])) == 1  # by all of their text they are one
    fixed, others = shares(held_out(prompts, 0.1, seed=3), [150, 50])
    assert 10 <= fixed <= 19 and fixed + others == 20
    assert held_out(prompts[:150], 0.1, seed=3).sum() == 15


def test_doubles_behind_fixed_instructions_stay_on_one_side():
    rng = random.Random(2)
    messages = [message(rng, 20) for _ in range(200)]
    doubles = [m + "." for m in messages[:60]] + [m.upper() + "!" for m in messages[:60]]
    doubles += [m.rsplit(" ", 1)[0] + " the " + m.rsplit(" ", 1)[1] for m in messages[:60]]
    prompts = [f"{FIXED} Message: {m}" for m in (*messages, *doubles)]
    for seed in range(3):
        out = held_out(prompts, 0.3, seed)
        assert all((out[:60] == out[start : start + 60]).all() for start in (200, 260, 320)) and 5 < out[:60].sum() < 40


def test_templates_within_templates_and_many_tasks():
    rng = random.Random(3)
    tasks = [
        f"{FIXED} This time it is about {a}: {message(rng, 30)}. Message: " for a in ("trams", "boats", "bikes", "cars")
    ]
    prompts = [task + message(rng, 6) for task in tasks for _ in range(30)]
    assert all(n >= 1 for n in shares(held_out(prompts, 0.2, seed=1), [30] * 4))
    few = [task + message(rng, 6) for task in tasks for _ in range(12)]  # groups that are small, but larger than wanted
    assert sum(n > 0 for n in shares(held_out(few, 0.1, seed=1), [12] * 4)) >= 3
    numbers = [f"{FIXED} What is {a} times {b}?" for a in range(10, 20) for b in range(10, 20)]
    assert held_out(numbers, 0.1, seed=1).sum() == 10


def test_small_groups_are_judged_by_all_of_their_text():
    rng = random.Random(4)
    originals = [message(rng, 25) for _ in range(60)]
    copies = [f"{m.replace(WORDS[i], WORDS[-i])} {i}" for m in originals[:20] for i in range(5)]
    prompts = [*originals, *copies]
    assert (groups_apart(prompts) == groups(prompts)).all() and len(set(groups(prompts))) < 80


def test_identical_prompts_are_refused_and_told_apart_by_their_system_texts():
    same = ["Summarize the text that you were given."] * 60
    with pytest.raises(UserError, match=r"all prompts are near-identical, .*--validation_file"):
        held_out(same, 0.1, 0)
    with pytest.raises(UserError, match="near-identical"):
        held_out(same, 0.1, 0, ["You are a helpful assistant."] * 60)
    rng = random.Random(5)
    systems = [f"{FIXED} Text: {message(rng, 20)}" for _ in range(60)]
    assert held_out(same, 0.1, 0, systems).sum() == 6
    mixed = held_out(same + [message(rng) for _ in range(60)], 0.2, 0, systems + systems[:1] * 60)
    assert min(shares(mixed, [60, 60])) > 5
    row = Row((Turn("system", "S"), Turn("user", "a", "c"), Turn("assistant", "b")))
    assert (prompt_of(row), row.system) == ("a\nc", "S")


def test_what_texts_have_to_themselves():
    rng = random.Random(6)
    messages = [message(rng) for _ in range(30)]
    assert own_parts([f"{FIXED}: {m}. {FIXED}" for m in messages]) == messages
    assert own_parts(messages) == messages and own_parts(["x", "y", "a bc"]) == ["x", "y", "a bc"]
    assert own_parts([f"{FIXED} Word: a{i % 4}b{i}c. {FIXED}" for i in range(40)])[:2] == ["a0b0c", "a1b1c"]
    ask = "请阅读下面的公共交通留言并判断它属于哪一类 只回答一个词 "
    chinese = [f"{ask}{a}{b}" for a in "车站票务司机" for b in "好坏快慢"]
    assert own_parts(chinese)[:2] == ["车好", "车坏"]
    ends = own_parts([f"{FIXED} Say {word}{end}" for word in WORDS for end in ("", ".", " !")])
    assert ends == [word for word in WORDS for _ in range(3)]
    assert own_parts([FIXED] * 3) == [FIXED] * 3  # one text: nobody shares it
    assert groups_apart([]).tolist() == [] and groups_apart(["x"]).tolist() == [0]


def test_the_reported_set_is_held_out_in_proportion():
    if not GUIDELINES.is_file():
        pytest.skip(f"{GUIDELINES} is not here")
    rows = list(read_rows(GUIDELINES))
    fixed = np.array([row.instruction.startswith("You label") for row in rows])
    out = held_out([prompt_of(row) for row in rows], 0.1, 42)
    assert fixed.sum() == 500 and out.sum() == 60 and 40 <= (out & fixed).sum() <= 56
    assert held_out([prompt_of(row) for row, one in zip(rows, fixed, strict=True) if one], 0.1, 42).sum() == 50


def test_the_split_takes_time_in_proportion_to_the_rows():
    """Twice the rows behind one text: counted in texts that are looked at, since time is nobody's here."""
    import lit_gpt.data.prepare.apart as apart

    looked_at = []
    original = apart.groups
    for n in (200, 400):
        rng = random.Random(7)
        texts = [f"{FIXED} Message: {message(rng)}" for _ in range(n)]
        count = 0

        def counting(texts, threshold):
            nonlocal count
            count += len(texts)
            return original(texts, threshold)

        apart.groups = counting
        try:
            assert len(set(groups_apart(texts).tolist())) == n
        finally:
            apart.groups = original
        looked_at.append(count)
    assert looked_at[1] == 2 * looked_at[0] <= 4 * 400, json.dumps(looked_at)


def sums(n):
    """Returns n prompts of one short template, in which no run is long enough to be taken off."""
    return [f"What is {i // 320} plus {i % 320}?" for i in range(n)]


def test_the_number_of_pairs_that_are_compared_is_linear_in_the_rows():
    counts = []
    for n in (4000, 8000):
        signatures = minhash.sign(sums(n))
        found = minhash.candidates(signatures, 0.8, np.arange(n))  # none is joined to another, so that all stay apart
        counts.append(sum(len(left) for left, *_ in found))
    n_bands = minhash.N_HASHES // minhash.rows_per_band(0.8)
    assert counts[1] < 2.5 * counts[0] and counts[1] < 8000 * minhash.MOST * n_bands


def test_a_hundred_thousand_rows_of_one_template_are_split_and_doubles_stay_on_one_side():
    prompts = sums(90_000)
    doubles = [prompt.upper().replace("?", "??") for prompt in prompts[::9]]
    out = held_out(prompts + doubles, 0.1, seed=1)
    same = out[:90_000:9] == out[90_000:]
    assert 9_000 <= out.sum() <= 10_000 and same.mean() > 0.99, same.mean()


def test_reading_and_splitting_takes_little_memory_for_a_row(tmp_path):
    """In a process of its own, since the peak of this one is that of other tests."""
    path, rng = tmp_path / "rows.jsonl", random.Random(8)
    with open(path, "w") as file:
        for i in range(100_000):
            row = {"instruction": f"{message(rng, 6)} {rng.random()}", "input": "", "output": f"It is {i}."}
            file.write(json.dumps(row) + "\n")
    code = f"""
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
import rensa
from lit_gpt.args import PrepareArgs
from lit_gpt.data.prepare.account import Scan
from lit_gpt.data.prepare.run import Files, rows_of
from lit_gpt.data.prepare.split import held_out
before, scan = getrusage(RUSAGE_SELF).ru_maxrss, Scan()
for row in rows_of(Files((Path({str(path)!r}),)), PrepareArgs()):
    scan.add(row, with_prompt=True)
assert held_out(scan.prompts, 0.1, 1, scan.systems).sum() == 10_000
print(getrusage(RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 115e6, done.stdout


def test_texts_in_little_memory_are_the_texts():
    rng = random.Random(9)
    texts = ["", "a", "\ud800 broken", "llama 🦙", *(message(rng, n) for n in range(40)), *[FIXED] * 5000, "", "z"]
    kept = Texts(texts)
    assert kept == texts and list(kept) == texts and kept[-1] == "z" and kept[1:3] == texts[1:3]
    assert len(kept.data) < 20_000  # equal long ones are there once
    chosen = kept.take(np.array([3, 1, len(texts) - 1]))
    assert list(chosen) == ["llama 🦙", "a", "z"] and list(chosen.take(np.array([1]))) == ["a"]
    assert kept != texts[:-1] and chosen != ["llama 🦙", "a", "y"]
    with pytest.raises(IndexError):
        kept[len(texts)]
