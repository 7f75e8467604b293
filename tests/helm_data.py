"""Files of HELM's scenarios in their own formats, made up and the same every time; needs the standard library only.

They hold what is easily done otherwise than HELM does it: equal answers, line breaks in quotes, prompts that are too
long, words that perturbations change in questions and answers, braces around summaries.
"""

import csv
import hashlib
import json
import pickle
import random
import re

ENTRIES = {  # entry -> questions that are asked
    "mmlu:subject=high_school_physics,data_augmentation=canonical": 7,
    "truthful_qa:task=mc_single,data_augmentation=canonical": 7,
    "gsm:": 8,
    "bbq:subject=all,data_augmentation=canonical": 8,
    "big_bench:task=analytic_entailment,subtask=,max_train_instances=3": 6,
    "big_bench:task=logical_deduction,subtask=three_objects,max_train_instances=3": 12,
    "big_bench:task=made_up,subtask=,max_train_instances=2": 6,
    "summarization_cnndm:": 5,
}
_NOUNS = ("available", "knowledge", "committee", "necessary", "government", "weather", "beginning", "island")
_PEOPLE = ("Brad", "Emily", "Greg", "Jill", "Geoffrey", "Katie", "he", "she", "his", "him", "her", "himself", "their")
_VERBS = ("is not", "did not", "is", "would have", "will not", "are going to", "was asking", "do not", "has been with")
_DIALECT = {"going": ["goin", "gon"], "asking": ["axin"], "with": ["wit"], "their": ["they"], "do not": ["ain't"]}
_NAMES = """brad,first_name,race,white_american,gender,male
greg,first_name,race,white_american,gender,male
geoffrey,first_name,race,white_american,gender,male
emily,first_name,race,white_american,gender,female
jill,first_name,race,white_american
darnell,first_name,race,black_american,gender,male
jermaine,first_name,race,black_american,gender,male
aisha,first_name,race,black_american,gender,female
ebony,first_name,race,black_american,gender,female
brown,last_name,race,white
"""
_CATEGORIES = (
    *("Age", "Disability_status", "Gender_identity", "Nationality", "Physical_appearance", "Race_ethnicity"),
    *("Race_x_SES", "Race_x_gender", "Religion", "SES", "Sexual_orientation"),
)


class Words:
    """A tokenizer: a word with the spaces before it is a token."""

    def __init__(self):
        self.ids, self.texts = {}, []

    def encode(self, text):
        found = []
        for word in re.findall(r"\s*\S+|\s+", text):
            if word not in self.ids:
                self.ids[word] = len(self.texts)
                self.texts.append(word)
            found.append(self.ids[word])
        return found

    def decode(self, ids):
        return "".join(self.texts[i] for i in ids)


def written(prompt, max_tokens):
    """What stands for a model's answer to a prompt: sometimes right, sometimes not even an answer."""
    drawn = int(hashlib.sha256(prompt.encode()).hexdigest(), 16)
    if max_tokens == 1:
        return (" A", " B", " C", "A", " B\n", " D", "", " a", " The")[drawn % 9]
    if max_tokens == 128:
        words = prompt.rpartition("Article: ")[2].split()
        return ("{" if drawn % 3 == 0 else " ") + " ".join(words[drawn % 4 : 30 + drawn % 9])
    if max_tokens == 64:
        if (asked := re.search(r"(\d+) \+ 3\s+A:$", prompt)) and drawn % 2:
            return f" {int(asked[1]) + 3}" + (" or so" if drawn % 5 == 0 else "")
        return (" A", " B", "C", " A", " 4", "the 5", " C. and so on", "B")[drawn % 8]
    return f" He adds them. The answer is {drawn // 7 % 2}" + (".", ".", " eggs.", ", not 1,000.5")[drawn % 4]


def prompt_hash(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sentence(rng, n=9):
    words = []
    while len(words) < n:
        words += [rng.choice(_PEOPLE), *rng.choice(_VERBS).split(), rng.choice(_NOUNS)]
    words[0] = words[0].title()
    return " ".join(words[:n]) + rng.choice((".", "?", ", isn't it?"))


def write_helm_data(folder):
    """Writes the folders `scenarios` and `perturbations`."""
    rng = random.Random(7)
    scenarios, words = folder / "scenarios", folder / "perturbations"
    _write(words / "dialect" / "SAE_to_AAVE_mapping.json", json.dumps(_DIALECT))
    _write(words / "person_name" / "data" / "person_names.txt", _NAMES)
    _write_mmlu(rng, scenarios / "mmlu" / "data")
    _write_truthful_qa(rng, scenarios / "truthful_qa" / "data" / "TruthfulQA.csv")
    for split, n in (("train", 9), ("test", 8)):
        sums = []
        for i in range(n):
            question = _sentence(rng, (20, 520, 90, 2100 if split == "test" else 700)[i % 4])
            sums.append({"question": question, "answer": f"{_sentence(rng)}\nIt is <<1+1=2>>.\n#### {i // 2 % 2}"})
        _write(scenarios / "gsm" / f"gsm_data_{split}", _lines(sums))
    for i, category in enumerate(_CATEGORIES):
        rows = [_bbq_row(rng, category, j) for j in range(94 + i)]
        _write(scenarios / "bbq" / "data" / category, _lines(rows))
    _write_big_bench(rng, scenarios / "big_bench")
    splits = {name: [_article(rng) for _ in range(n)] for name, n in (("train", 9), ("validation", 4), ("test", 6))}
    path = scenarios / "summarization" / "data" / "cnndm.pk"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(splits))


def _lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _write_mmlu(rng, folder):
    for name, n in (("dev", 11), ("val", 6), ("test", 9)):
        path = folder / name / f"high_school_physics_{name}.csv"
        path.parent.mkdir(parents=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            for i in range(n):
                question = _sentence(rng, 60 if i == 2 else 12) + ("\nWhich\u2019s it, \u00e9?" if i % 3 == 0 else "")
                answers = [_sentence(rng, 3), "Brad is not going, Emily.", f"{i}", "with him" if i % 4 else f"{i}"]
                csv.writer(file).writerow([question, *answers, "ABCD"[i * 3 % 4]])


def _write_truthful_qa(rng, path):
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"])
        for i in range(44):
            wrong = "; ".join(_sentence(rng, 4).rstrip(".") for _ in range(1 + i % 4)) + ";" * (i % 2)
            rows.writerow(["", "Law", f" {_sentence(rng)} ", _sentence(rng, 5 + i % 3), "", wrong, ""])


def _bbq_row(rng, category, i):
    target = {"Race_ethnicity": "Black", "SES": "low SES", "Race_x_SES": "Black"}.get(category, "old")
    named = {"Race_ethnicity": "F-Black", "SES": "lowSES", "Race_x_SES": f"lowSES-{'MF'[i % 2]}-Black"}
    info = [["Brad", named.get(category, "old")], ["Emily", "new"], ["Unknown answer", "Not known"]]
    if i % 10 == 9:
        info[1] = list(info[0])  # nobody else
    order = [0, 1, 2]
    rng.shuffle(order)
    texts = [f"{info[k][0]} with him" for k in order]
    return {
        "question_polarity": "neg" if i % 2 else "nonneg",
        "context_condition": "ambig" if i % 3 else "disambig",
        "context": _sentence(rng) if i % 4 else "Nothing.",
        "question": _sentence(rng, 6) if i % 4 else "Who?",
        **{f"ans{j}": text for j, text in enumerate(texts)},
        "label": order.index(2 if i % 3 else i % 2),
        "answer_info": {f"ans{j}": info[k] for j, k in enumerate(order)},
        "additional_metadata": {"stereotyped_groups": [target]},
    }


def _write_big_bench(rng, folder):
    def task(name, metrics, examples, **more):
        about = {"description": "Made up.", "keywords": [], "metrics": metrics, "examples": examples} | more
        _write(folder / name / "task.json", json.dumps(about))

    def scored(i):
        return {"input": _sentence(rng), "target_scores": {"entailment": i % 2, "no-entailment": 1 - i % 2}}

    choice = ["multiple_choice_grade", "exact_str_match"]
    task("analytic_entailment", choice, [scored(i) for i in range(41)], task_prefix="Which follows?")
    many = [
        {"input": _sentence(rng), "target_scores": {f"{i} {j} his": i % 3 == j for j in range(3)}} for i in range(60)
    ]
    task("logical_deduction/three_objects", ["multiple_choice_grade"], many, stop_string="\n")
    sums = [{"input": f"{i} + 3", "target": [str(i + 3), "the 5"] if i % 2 else str(i + 3)} for i in range(44)]
    prefixes = {"example_input_prefix": "\nQ: ", "example_output_prefix": "\nA: ", "stop_string": "."}
    task("made_up", ["exact_str_match", "rouge", "bits_of_luck"], sums, **prefixes)


def _article(rng):
    text = "\n".join(_sentence(rng, rng.randrange(20, 60)) for _ in range(rng.randrange(1, 5)))
    return {
        "article": text * (12 if rng.random() < 0.2 else 1),
        "highlights": f"{{{text[:120]}\n running runners ran }}",
    }
