"""What is made of a row still has its answer: options move with their letters, answers are never perturbed, the same
seed makes the same."""

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.args.curation import AugmentArgs
from lit_gpt.data.curate.augment import PERTURBATIONS, augmented, perturb_prompt, shuffle_options
from lit_gpt.data.curate.augment.words import CONTRACTED, EXPANDED, MISSPELLED, NEIGHBORS
from lit_gpt.data.prepare.rows import Row
from lit_gpt.errors import UserError
from lit_gpt.prompts.turns import Turn

OPTIONS = ["red clay", "blue sky", "a green door", "white snow"]
QUESTION = "Which of these is cold?\nA. red clay\nB. blue sky\nC. a green door\nD. white snow\nAnswer:"
TEXT = "Don't you think it is likely that People cannot believe the Information, because they are different?"


def options_of(prompt):
    return dict(re.findall(r"^\s*\(?([A-Z])[.):]\s+(.*)$", prompt, re.M))


@pytest.mark.parametrize(
    "response", ["D", " D", "D.", "(D)", "D) white snow", "D. white snow", "Answer: D", "The answer is D."]
)
@pytest.mark.parametrize("shape", ["{}. ", "{}) ", "({}) ", "{}: "])
def test_the_letter_follows_its_option(response, shape):
    prompt = re.sub(r"^([A-D])\. ", lambda m: shape.format(m[1]), QUESTION, flags=re.M)
    seen = set()
    for seed in range(30):
        made, answer = shuffle_options(prompt, response, Random(seed))
        options = options_of(made)
        assert list(options) == list("ABCD") and sorted(options.values()) == sorted(OPTIONS) and made != prompt
        letter = re.search(r"\b([A-D])\b(?!nswer)", answer)[1]
        assert options[letter] == "white snow" and answer == response.replace("D", letter)
        assert made.splitlines()[0] == prompt.splitlines()[0] and made.endswith("\nAnswer:")
        seen.add(letter)
    assert seen == set("ABCD")


def test_an_answer_by_its_text_stays_and_only_the_last_question_moves():
    solved = QUESTION.replace("cold", "hot") + " A\n\n" + QUESTION
    made, answer = shuffle_options(solved, "white snow", Random(0))
    assert answer == "white snow" and made.startswith(QUESTION.replace("cold", "hot") + " A\n\n")
    assert options_of(made[len(QUESTION) :]) != options_of(QUESTION)
    explained = "D. white snow. Snow is frozen water, which is cold."
    made, answer = shuffle_options(QUESTION, explained, Random(1))
    assert answer[1:] == explained[1:] and options_of(made)[answer[0]] == "white snow"


@pytest.mark.parametrize(
    "prompt, response",
    [
        ("Which is cold?", "D"),
        (QUESTION.replace("white snow", "all of the above"), "D"),
        (QUESTION.replace("white snow", "A and B"), "D"),
        (QUESTION, "A door is never cold"),
        (QUESTION.replace("red clay", "white snow"), "D"),
        (QUESTION, "D, for B is warm"),
        (QUESTION, "D. white snow. It is not B, which is warm."),
        (QUESTION, "The answer is D. Option A is clay."),
        (QUESTION, "E"),
        (QUESTION, "Snow"),
        (QUESTION, ""),
        ("A. only one\nanswer", "A"),
        ("A. one\nC. two", "A"),
    ],
)
def test_where_the_answer_would_be_unclear_nothing_moves(prompt, response):
    assert shuffle_options(prompt, response, Random(0)) is None


def test_perturbations_do_what_their_names_say():
    rng = Random(3)
    assert PERTURBATIONS["lowercase"](TEXT, rng) == TEXT.lower()
    assert (
        PERTURBATIONS["contractions"]("It is so. I DO NOT know. We do not.", rng) == "It's so. I DON'T know. We do not."
    )
    assert (
        PERTURBATIONS["expansions"]("It\u2019s so. I DON'T know, they can't.", rng)
        == "It is so. I DO NOT know, they cannot."
    )
    spaced = PERTURBATIONS["spaces"]("  indented a b c d e f g h", rng)
    assert (
        spaced.split() == ["indented", "a", "b", "c", "d", "e", "f", "g", "h"]
        and spaced.startswith("  i")
        and "  " in spaced[2:]
    )
    long = " ".join([TEXT] * 200)
    typed = PERTURBATIONS["typos"](long, rng)
    changed = [(a, b) for a, b in zip(long, typed, strict=True) if a != b]
    n_letters = sum(c.isalpha() for c in long)
    assert 0.08 < len(changed) / n_letters < 0.12
    assert all(b.lower() in NEIGHBORS[a.lower()] and a.isupper() == b.isupper() for a, b in changed)
    misspelt = PERTURBATIONS["misspellings"](long, rng).split()
    words = long.split()
    wrong = [(a.strip(".,?"), b.strip(".,?")) for a, b in zip(words, misspelt, strict=True) if a != b]
    candidates = sum(w.strip(".,?").lower() in MISSPELLED for w in words)
    assert 0.06 < len(wrong) / candidates < 0.14 and all(b.lower() in MISSPELLED[a.lower()] for a, b in wrong)
    mixed = PERTURBATIONS["mild_mix"](long, rng)
    assert mixed == mixed.lower() and "can't" in mixed and "cannot" not in mixed and "  " in mixed


def test_the_tables_are_sound():
    assert all(key in NEIGHBORS[beside] for key, all_of_it in NEIGHBORS.items() for beside in all_of_it)
    assert len(NEIGHBORS) == 26 and len(set(CONTRACTED.values())) == len(CONTRACTED) == len(EXPANDED)
    assert all(w != wrong and wrong not in MISSPELLED for w, all_of_it in MISSPELLED.items() for wrong in all_of_it)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_depends_on_the_seed_alone_and_leaves_options(name):
    for text in ("", "\n", "naïve 🦙 你好", TEXT, QUESTION):
        assert perturb_prompt(text, Random(5), name) == perturb_prompt(text, Random(5), name)
        assert perturb_prompt(text, Random(5), name).count("\n") == text.count("\n")
    assert perturb_prompt(QUESTION, Random(5), name).split("\n")[1:5] == QUESTION.split("\n")[1:5]


@settings(max_examples=150, deadline=None)
@given(st.text(), st.sampled_from(["", "Q?\n", QUESTION, "A. x\nB. y"]), st.text(max_size=12), st.integers(0, 99))
def test_any_text_survives(text, question, response, seed):
    prompt = question + text
    for name in PERTURBATIONS:
        assert perturb_prompt(prompt, Random(seed), name).count("\n") == prompt.count("\n")
    if made := shuffle_options(prompt, response, Random(seed)):
        assert Counter(made[0]) == Counter(prompt) and made[0] != prompt and len(made[1]) == len(response)


def rows(n=200):
    choice = [
        Row.single(QUESTION, "", "D") if i % 2 else Row.single("Choose.", QUESTION, "D. white snow") for i in range(n)
    ]
    return [*choice, Row.single(TEXT, TEXT, "It is What I Said."), Row((Turn("system", "Be KIND."), *choice[1].turns))]


def test_rows_are_augmented_as_asked_and_the_same_way_again():
    args = AugmentArgs(shuffle_options=0.5, perturb=0.3, perturbations=("lowercase", "spaces"))
    counts: Counter[str] = Counter()
    made = list(augmented(rows(), args, "7:x", counts))
    assert made == list(augmented(rows(), args, "7:x", Counter())) != list(augmented(rows(), args, "8:x", Counter()))
    assert len(made) == 202 + counts.total() and set(counts) == {"options shuffled", "lowercase", "spaces"}
    assert 70 < counts["options shuffled"] < 130 and 40 < counts["lowercase"] + counts["spaces"] < 80
    assert [row for row in made if row in rows()] == rows()
    assert list(augmented(rows(), AugmentArgs(), "7:x", Counter())) == rows()


def test_what_replaces_a_row_has_its_answer_and_its_system_text():
    args = AugmentArgs(shuffle_options=1, perturb=1, perturbations=("lowercase",), augmented="replace")
    made = list(augmented(rows(), args, "7", Counter()))
    assert len(made) == 202
    for old, new in zip(rows(), made, strict=True):
        assert new.instruction == perturb_prompt(new.instruction, Random(0), "lowercase") and new != old
        options = options_of(f"{new.instruction}\n{new.context}")
        assert not options or options[new.response[0]] == "white snow"
    assert made[-2].response == "It is What I Said." and made[-1].turns[0].text == "Be KIND."


def test_wrong_amounts_are_named():
    for bad in ({"shuffle_options": 1.5}, {"perturb": -1}, {"perturbations": ()}):
        with pytest.raises(UserError, match=next(iter(bad))):
            AugmentArgs(**bad)
