"""Local data of a task: a file for each split, solved examples from the task's own one, the shapes MMLU comes in."""

import csv
import json
import runpy
from pathlib import Path

import lm_eval
import pytest
from conftest import ROOT
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval_reference import write_rows

from lit_gpt.args import EvalArgs
from lit_gpt.cli import parse
from lit_gpt.errors import UserError
from lit_gpt.evaluation.tasks import prepare

TASKS = Path(lm_eval.__file__).parent / "tasks"
ANATOMY = TASKS / "mmlu" / "default" / "mmlu_anatomy.yaml"


def rows_of(subject: str, n: int, start: int = 1) -> list[dict]:
    return [
        {
            "question": f"How many legs do {k} {subject} have?",
            "subject": subject,
            "choices": [str(k * legs) for legs in (4, 6, 8, 10)],
            "answer": k % 4,
        }
        for k in range(start, start + n)
    ]


def asked(shots: int, **fields) -> list[list[str]]:
    """The prompts of each task, as the evaluation builds them."""
    args = EvalArgs(num_fewshot=shots, **fields)
    _, tasks = prepare(args)
    return [prompts(task, shots) for task in tasks]


def prompts(task, shots: int) -> list[str]:
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=1234)
    return [task.fewshot_context(doc, num_fewshot=shots) for doc in task.eval_docs]


def as_lm_eval_asks(yaml: Path, files: dict[str, Path], shots: int) -> list[str]:
    """The prompts of lm-eval's own task, with all of its splits in local files."""
    local = {"dataset_path": "json", "dataset_name": None}
    local["dataset_kwargs"] = {"data_files": {split: str(path) for split, path in files.items()}}
    manager = TaskManager(include_defaults=False)
    (task,) = manager.load([{**load_yaml(yaml), **local}])["tasks"].values()
    return prompts(task, shots)


def write_archive(folder: Path, subject: str, splits: dict[str, list[dict]]) -> None:
    """As MMLU's authors published it."""
    for split, rows in splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        with open(folder / split / f"{subject}_{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([r["question"], *r["choices"], "ABCD"[r["answer"]]] for r in rows)


# solved examples from their own split


@pytest.mark.parametrize("shape", ["mapping", "folder", "folder by task", "archive"])
def test_solved_examples_come_from_the_tasks_own_split(shape, tmp_path, capsys):
    splits = {"test": rows_of("spiders", 6), "dev": rows_of("ants", 5, start=50)}
    splits["dev"][0]["question"] = 'A "quoted" one, with a comma\nand a line break'
    files = {split: write_rows(tmp_path / f"{split}-rows.jsonl", rows) for split, rows in splits.items()}
    given = folder = tmp_path / "data"
    if shape == "mapping":
        given = {"test": files["test"], "dev": files["dev"]}
    elif shape == "archive":
        write_archive(folder, "anatomy", splits)
    else:
        place = folder if shape == "folder" else folder / "mmlu_anatomy"
        place.mkdir(parents=True)
        for split, rows in splits.items():
            write_rows(place / f"{split}.jsonl", rows)
    (found,) = asked(eval_tasks=("mmlu_anatomy",), task_data={"mmlu_anatomy": given}, shots=5)
    assert found == as_lm_eval_asks(ANATOMY, files, 5)
    assert all(prompt.count("ants") == 4 and prompt.count("spiders") == 1 for prompt in found)
    said = capsys.readouterr().err
    assert "Solved examples of mmlu_anatomy: from " in said and "split dev" in said and "--task_data" not in said


def test_without_a_file_of_their_own_it_is_said_where_examples_come_from_and_how_to_give_one(tmp_path, capsys):
    data = write_rows(tmp_path / "a.jsonl", rows_of("spiders", 6))
    (found,) = asked(eval_tasks=("mmlu_anatomy",), task_data={"mmlu_anatomy": data}, shots=5)
    for row, prompt in zip(rows_of("spiders", 6), found, strict=True):
        assert prompt.count(row["question"]) == 1 and prompt.count("spiders") == 6
    said = capsys.readouterr().err
    assert f"from {data}, split test" in said
    assert f'its split dev: --task_data "{{mmlu_anatomy: {{test: {data}, dev: FILE}}}}"' in said
    asked(eval_tasks=("mmlu_anatomy",), task_data={"mmlu_anatomy": data}, shots=0)
    assert "Solved examples" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "splits", "source"),
    [
        ("piqa", ("validation", "train"), "train"),
        ("arc_easy", ("test", "validation", "train"), "train"),
        ("arc_easy", ("test", "validation"), "validation"),
        ("gsm8k", ("test", "train"), "train"),
        ("hellaswag", ("validation", "train"), "train"),  # whose rows go through a function of its own
    ],
)
def test_each_task_takes_examples_from_the_split_that_lm_eval_takes(task, splits, source, tmp_path):
    rows = {
        "piqa": {"goal": "GOAL", "sol1": "one", "sol2": "two", "label": 1},
        "gsm8k": {"question": "GOAL", "answer": "It is\n#### 4"},
        "arc_easy": {"question": "GOAL", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        "hellaswag": {"ctx_a": "GOAL", "ctx_b": "he", "endings": ["a", "b"], "label": "1", "activity_label": "Go"},
    }
    files = {}
    for split in splits:
        text = json.dumps(rows[task])
        entries = [json.loads(text.replace("GOAL", f"{split} {n}")) for n in range(4)]
        files[split] = write_rows(tmp_path / f"{split}.jsonl", entries)
    (found,) = asked(eval_tasks=(task,), task_data={task: files}, shots=2)
    assert all(prompt.count(f"{source} ") == 2 and prompt.count(f"{splits[0]} ") == 1 for prompt in found)
    if source == "train":
        (yaml,) = TASKS.glob(f"*/{task}.yaml")
        assert found == as_lm_eval_asks(yaml, files, 2)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["test", "train"], "'train' is none of its splits, which are test, dev"),
        (["dev"], "no file for test, the split whose questions it asks"),
        (["test", "nowhere"], "there is no "),
    ],
)
def test_files_for_other_splits_are_refused(splits, message, tmp_path):
    files = {split: tmp_path / f"{split}.jsonl" for split in splits}
    for split, path in files.items():
        if split != "nowhere":
            write_rows(path, rows_of("spiders", 6))
    with pytest.raises(UserError, match=f"--task_data mmlu_anatomy: .*{message}"):
        asked(eval_tasks=("mmlu_anatomy",), task_data={"mmlu_anatomy": files}, shots=2)


def test_both_files_of_a_task_have_the_same_keys(tmp_path):
    test = write_rows(tmp_path / "test.jsonl", rows_of("spiders", 6))
    dev = write_rows(tmp_path / "dev.jsonl", [{**row, "more": 1} for row in rows_of("ants", 6)])
    with pytest.raises(UserError, match=r"dev\.jsonl, line 1 has 'more', unlike the first row"):
        asked(eval_tasks=("mmlu_anatomy",), task_data={"mmlu_anatomy": {"test": test, "dev": dev}}, shots=2)


def test_the_command_line_takes_a_file_for_each_split(tmp_path):
    main = runpy.run_path(str(ROOT / "eval" / "lm_eval_harness.py"))["main"]
    flags = ["--task_data", "{mmlu_anatomy: {test: a.jsonl, dev: b.jsonl}, piqa: c}", "--system", "Think."]
    flags += ["--apply_prompt_style", "true", "--fewshot_as_multiturn", "true"]
    args = parse(main, flags)["evaluation"]
    assert args.task_data == {"mmlu_anatomy": {"test": Path("a.jsonl"), "dev": Path("b.jsonl")}, "piqa": Path("c")}
    assert args.system == "Think." and args.fewshot_as_multiturn is True
    with pytest.raises(UserError, match="--fewshot_as_multiturn does nothing without --apply_prompt_style"):
        EvalArgs(fewshot_as_multiturn=True)


# which file is for which task


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """The user's own group of three MMLU subjects: what reads all of lm-eval's index takes half a minute."""
    folder = tmp_path_factory.mktemp("own")
    for subject in ("anatomy", "virology", "astronomy"):
        text = f"include: {ANATOMY.with_name('_default_template_yaml')}\ntask: my_{subject}\ndataset_name: {subject}\n"
        (folder / f"my_{subject}.yaml").write_text(text)
    (folder / "my.yaml").write_text("group: my\ntask: [my_anatomy, my_virology, my_astronomy]\n")
    return folder


def questions_of(args: EvalArgs) -> dict[str, str]:
    """Task -> its first question."""
    _, (group,) = prepare(args)
    return {task.config.task: task.eval_docs[0]["question"] for task in group.get_all_tasks()}


def test_one_file_for_tasks_with_questions_of_their_own_is_refused(group, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", rows_of("spiders", 3))
    with pytest.raises(UserError) as e:
        prepare(EvalArgs(eval_tasks=("my",), task_path=group, task_data={"my": data}))
    for part in ("--task_data my", "is one file for 3 tasks", "folder with my_anatomy.jsonl", "{my_anatomy: FILE, my_"):
        assert part in str(e.value)
    assert "\n" not in str(e.value)


def test_a_group_has_a_folder_or_a_file_for_each_of_its_tasks(group, tmp_path):
    files = {f"my_{s}": write_rows(tmp_path / f"my_{s}.jsonl", rows_of(s, 3)) for s in ("anatomy", "virology")}
    files["my_astronomy"] = write_rows(tmp_path / "stars.jsonl", rows_of("astronomy", 3))
    expected = {f"my_{s}": f"How many legs do 1 {s} have?" for s in ("anatomy", "virology", "astronomy")}
    common = {"eval_tasks": ("my",), "task_path": group}
    ways = [files, {"my": files}, {"my": tmp_path, "my_astronomy": files["my_astronomy"]}]
    ways += [dict(reversed(ways[-1].items()))]
    for task_data in ways:  # what is given to one task goes before what is given to its group, in any order
        assert questions_of(EvalArgs(**common, task_data=task_data)) == expected
    one = EvalArgs(
        eval_tasks=("my_virology",), task_path=group, task_data={"my": {"my_virology": files["my_virology"]}}
    )
    _, (task,) = prepare(one)  # a single one of them is evaluated
    assert task.eval_docs[0]["question"] == expected["my_virology"]
    with pytest.raises(UserError, match=r"has no my_astronomy\.jsonl, and no my_astronomy/test\.jsonl"):
        prepare(EvalArgs(**common, task_data={"my": tmp_path}))
    with pytest.raises(UserError, match=r"no task 'mmlu_anatomy'; did you mean my_anatomy"):
        prepare(EvalArgs(**common, task_data={"my": {"mmlu_anatomy": files["my_anatomy"]}}))


# shapes of MMLU

ROW = rows_of("spiders", 1)[0]
LETTERED = {"question": ROW["question"], **dict(zip("ABCD", ROW["choices"], strict=True)), "answer": "B"}
SHAPES = {
    "hub": ROW,
    "letter": {**ROW, "answer": "B"},
    "text": {**ROW, "answer": "6"},
    "number in a text": {**ROW, "choices": ["w", "x", "y", "z"], "answer": "1"},
    "lettered": LETTERED,
    "lower case": {name.lower(): value for name, value in LETTERED.items()},
    "input and target": {
        "input" if k == "question" else "target" if k == "answer" else k: v for k, v in LETTERED.items()
    },
    "options": {"options" if k == "choices" else k: v for k, v in ROW.items()},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_in_the_shapes_that_mmlu_comes_in_are_those_of_the_hub(shape, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", [SHAPES[shape]] * 2)
    _, (task,) = prepare(EvalArgs(eval_tasks=("mmlu_anatomy",), task_data={"mmlu_anatomy": data}))
    doc = task.eval_docs[0]
    choices = SHAPES[shape].get("choices") or ROW["choices"]
    assert (doc["question"], doc["choices"], doc["answer"]) == (ROW["question"], choices, 1)


def test_csv_with_a_header_or_without_one_is_read(tmp_path):
    row = [LETTERED[name] for name in ("question", *"ABCD", "answer")]
    for header in ([], [["question", *"ABCD", "answer"]], [["Question", *"ABCD", "Answer"]]):
        path = tmp_path / "mmlu_anatomy.csv"
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([*header, row, row])
        _, (task,) = prepare(EvalArgs(eval_tasks=("mmlu_anatomy",), task_data={"mmlu_anatomy": tmp_path}))
        assert len(task.eval_docs) == 2 and task.eval_docs[1]["answer"] == 1
    path.write_text('"How many?",1,2,3,4,A\n"How many?",1,2,3,A\n')
    with pytest.raises(UserError, match=r"mmlu_anatomy\.csv, line 2: expected 6 columns .* found 5"):
        prepare(EvalArgs(eval_tasks=("mmlu_anatomy",), task_data={"mmlu_anatomy": path}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "E"}, r"line 2: the answer 'E' is none of A, B, C, D"),
        ({"answer": 4}, r"line 2: the answer 4 is none of A, B, C, D"),
        ({"choices": ["1", "2", "3", "4"], "answer": "2"}, r"line 2: the answer '2' is both a choice and the number"),
        ({"choices": ["1", "2"]}, r"line 2: MMLU's rows have question, choices"),
        ({"answer": None}, r"line 2: the answer None is none of"),
    ],
)
def test_a_row_of_mmlu_without_its_right_answer_is_refused_with_its_place(change, message, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", [ROW, {**ROW, **change}])
    with pytest.raises(UserError, match=message):
        prepare(EvalArgs(eval_tasks=("mmlu_anatomy",), task_data={"mmlu_anatomy": data}))


def test_a_right_answer_that_is_no_choice_is_refused_in_any_task(tmp_path):
    """lm-eval would count the question as wrong, whatever the model says."""
    good = {"goal": "Go", "sol1": "one", "sol2": "two", "label": 1}
    for label in (2, -1):
        data = write_rows(tmp_path / "a.jsonl", [good, {**good, "label": label}])
        with pytest.raises(
            UserError, match=rf"a\.jsonl does not fit task piqa \(question 2: the answer {label} is none"
        ):
            prepare(EvalArgs(eval_tasks=("piqa",), task_data={"piqa": data}))
    data = write_rows(tmp_path / "a.jsonl", [{**good, "label": "1"}])
    with pytest.raises(UserError, match=r"question 1: the answer '1' is none of 'one', 'two'"):
        prepare(EvalArgs(eval_tasks=("piqa",), task_data={"piqa": data}))
    table = tmp_path / "piqa.csv"
    table.write_text("goal,sol1,sol2,label\nGo,one,two,1\n")
    with pytest.raises(UserError, match=r"piqa\.csv is CSV, which only MMLU comes in; make JSON lines"):
        prepare(EvalArgs(eval_tasks=("piqa",), task_data={"piqa": table}))


# as many examples as are asked for


@pytest.mark.parametrize(("n_rows", "shots", "room"), [(4, 5, 3), (6, 10, 5), (4, 4, 3)])
def test_more_shots_than_rows_are_refused_with_the_most_there_are(n_rows, shots, room, tmp_path):
    data = write_rows(tmp_path / "four.jsonl", rows_of("spiders", n_rows))
    common = {"eval_tasks": ("mmlu_anatomy",), "task_data": {"mmlu_anatomy": data}}
    with pytest.raises(UserError) as e:
        prepare(EvalArgs(**common, num_fewshot=shots))
    parts = [
        f"--num_fewshot {shots} ",
        f"four.jsonl has {room} beside",
        f"pass --num_fewshot {room} or less",
        "dev: FILE",
    ]
    assert all(part in str(e.value) for part in parts) and "\n" not in str(e.value)
    (found,) = asked(**common, shots=room)
    assert all(prompt.count("spiders") == room + 1 for prompt in found)


def test_shots_of_a_tasks_own_and_copies_of_a_question_count(tmp_path):
    row = {"question": "How many?", "answer": "It is\n#### 4"}
    data = write_rows(tmp_path / "a.jsonl", [{**row, "question": f"{n}?"} for n in range(4)])
    with pytest.raises(UserError, match=r"task gsm8k: it shows 5 examples, .*a\.jsonl has 3 beside"):
        prepare(EvalArgs(eval_tasks=("gsm8k",), task_data={"gsm8k": data}))
    data = write_rows(tmp_path / "a.jsonl", [row, row, *({**row, "question": f"{n}?"} for n in range(4))])
    with pytest.raises(UserError, match=r"a\.jsonl has 4 beside"):
        prepare(EvalArgs(eval_tasks=("gsm8k",), task_data={"gsm8k": data}))
    assert asked(eval_tasks=("gsm8k",), task_data={"gsm8k": data}, shots=4)


def test_a_file_of_examples_may_be_all_shown(tmp_path):
    files = {"test": write_rows(tmp_path / "test.jsonl", rows_of("spiders", 2))}
    files["dev"] = write_rows(tmp_path / "dev.jsonl", rows_of("ants", 3))
    common = {"eval_tasks": ("mmlu_anatomy",), "task_data": {"mmlu_anatomy": files}}
    assert asked(**common, shots=3)
    with pytest.raises(UserError, match=r"dev\.jsonl has 3; pass --num_fewshot 3 or less$"):
        prepare(EvalArgs(**common, num_fewshot=4))


# tasks that run code


@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_a_task_that_runs_code_is_named_as_such(task, monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(UserError, match=rf"{task} runs code .*--confirm_run_unsafe_code true and set HF_ALLOW_CODE_EV"):
        prepare(EvalArgs(eval_tasks=(task,)))
    with pytest.raises(UserError, match=rf"task {task} runs code that .* acceptable, set HF_ALLOW_CODE_EVAL=1"):
        prepare(EvalArgs(eval_tasks=(task,), confirm_run_unsafe_code=True))


def test_a_task_of_ones_own_that_runs_code_does_so_once_it_is_confirmed(checkpoint, tmp_path, capsys):
    data = write_rows(tmp_path / "rows.jsonl", [{"question": "1 + 1 =", "answer": "2"}])
    text = f"task: coded\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
    text += "unsafe_code: true\noutput_type: generate_until\ndoc_to_text: question\ndoc_to_target: answer\n"
    text += "generation_kwargs: {until: [x], max_gen_toks: 3}\n"
    text += "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    (tmp_path / "coded.yaml").write_text(text)
    main = runpy.run_path(str(ROOT / "eval" / "lm_eval_harness.py"))["main"]
    common = {"eval_tasks": ("coded",), "task_path": tmp_path / "coded.yaml"}
    with pytest.raises(UserError, match=r"task coded runs code .*--confirm_run_unsafe_code true$"):
        main(checkpoint, precision="32-true", evaluation=EvalArgs(**common))
    main(checkpoint, precision="32-true", evaluation=EvalArgs(**common, confirm_run_unsafe_code=True))
    assert "exact_match" in capsys.readouterr().out
