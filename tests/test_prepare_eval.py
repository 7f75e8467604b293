"""Local files of lm-eval's tasks are made of what their authors publish, and lm-eval reads them."""

import json
import runpy
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

from lit_gpt.args import EvalArgs
from lit_gpt.errors import UserError
from lit_gpt.evaluation.local import archives
from lit_gpt.evaluation.tasks import prepare

SHARED = Path("/work/shared/data/eval")


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def science(n, key="A"):
    choices = [{"text": f"text {i}", "label": "ABCD"[i]} for i in range(4)]
    return {"id": f"q{n}", "question": {"stem": f"Why {n}?", "choices": choices}, "answerKey": key}


SCIENCE = lines(science(n, "ABCD"[n % 4]) for n in range(4))
SWAG = {"ind": 1, "activity_label": "Baking", "ctx_a": "A cook", "ctx_b": "she", "ctx": "A cook she", "split": "val"}
SWAG |= {"split_type": "indomain", "endings": ["a.", "b.", "c.", "d."], "source_id": "x~1", "label": 2}
MC = {"question": "Is it?", "mc1_targets": {"Yes.": 1, "No.": 0}, "mc2_targets": {"Yes.": 1, "Sure.": 1, "No.": 0}}
CSV = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
CSV += 'Adversarial,Law,"Is it, now?",Yes,"Yes; Of course; ",No; Never,https://example.org\n'
BOOLQ = lines({"question": "is it", "passage": "It is.", "idx": n, "label": bool(n)} for n in range(2))
WINO = lines(
    {"qID": f"x-{n}", "sentence": "The _ fell.", "option1": "cup", "option2": "jug", "answer": "2"} for n in range(2)
)
IFEVAL = [
    {"key": 1, "prompt": "Write.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Go.",
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"num_words": 5}],
    },
]
QUESTION = lines({"goal": f"Do {n}", "sol1": "this", "sol2": "that"} for n in range(3))
BBH = json.dumps({"canary": "x", "examples": [{"input": "not True", "target": "False"}] * 4})
FILES = {
    "arc/ARC-V1-Feb2018.zip": {
        f"ARC-V1-Feb2018-2/{n}/{n}-{part}.jsonl": SCIENCE
        for n in ("ARC-Easy", "ARC-Challenge")
        for part in ("Train", "Dev", "Test")
    },
    "main.zip": {
        f"BIG-Bench-Hard-main/bbh/{n}.json": BBH
        for n in ("boolean_expressions", "navigate")
    },
    "BoolQ.zip": {"BoolQ/train.jsonl": BOOLQ, "BoolQ/val.jsonl": BOOLQ, "BoolQ/test.jsonl": "{}\n"},
    "open-book-qa/OpenBookQA.zip": {f"V1/Data/Main/{part}.jsonl": SCIENCE for part in ("train", "dev", "test")},
    "winogrande_1.1.zip": {"winogrande_1.1/train_xl.jsonl": WINO, "winogrande_1.1/dev.jsonl": WINO},
    "data.tar": {
        f"data/{split}/{subject}_{split}.csv": '"Why, though?",1,2,3,4,C\nWhat?,a,b,c,d,A\n' * 3
        for split in ("test", "dev", "val")
        for subject in ("anatomy", "virology")
    },
    "hellaswag_train.jsonl": lines([SWAG]), "hellaswag_val.jsonl": lines([SWAG] * 2),
    "gsm8k/train.jsonl": lines([{"question": f"1+{n}?", "answer": f"#### {n + 1}"} for n in range(7)]),
    "gsm8k/test.jsonl": lines([{"question": "1+9?", "answer": "#### 10"}]),
    "piqa/train.jsonl": QUESTION, "piqa/valid.jsonl": QUESTION,
    "piqa/train-labels.lst": "0\n1\n0\n", "piqa/valid-labels.lst": "1\n0\n1\n",
    "mc_task.json": json.dumps([MC] * 2), "TruthfulQA.csv": CSV, "input_data.jsonl": lines(IFEVAL),
}  # fmt: skip
FIELDS = {
    "arc_easy": {"id", "question", "choices", "answerKey"},
    "arc_challenge": {"id", "question", "choices", "answerKey"},
    "bbh_zeroshot_navigate": {"input", "target"},
    "boolq": {"question", "passage", "idx", "label"},
    "gsm8k": {"question", "answer"},
    "hellaswag": set(SWAG),
    "ifeval": {"key", "prompt", "instruction_id_list", "kwargs"},
    "mmlu_anatomy": {"question", "subject", "choices", "answer"},
    "openbookqa": {"id", "question_stem", "choices", "answerKey"},
    "piqa": {"goal", "sol1", "sol2", "label"},
    "truthfulqa_mc1": {"question", "mc1_targets", "mc2_targets"},
    "truthfulqa_gen": {"type", "category", "question", "best_answer", "correct_answers", "incorrect_answers", "source"},
    "winogrande": {"qID", "sentence", "option1", "option2", "answer"},
}


def publish(folder):
    """The published files, small."""
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as archive:
                for member, text in content.items():
                    archive.writestr(member, text)
        else:
            for member, text in content.items():
                (folder / "unpacked" / member).parent.mkdir(parents=True, exist_ok=True)
                (folder / "unpacked" / member).write_text(text)
            with tarfile.open(path, "w") as archive:
                archive.add(folder / "unpacked" / "data", "data")
    return folder


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The files on a server of loopback, whose addresses the table of tasks has."""
    folder = publish(tmp_path / "published")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *unused):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    at = {"arc": "arc/ARC-V1-Feb2018.zip", "bbh": "main.zip", "openbookqa": "open-book-qa/OpenBookQA.zip"}
    for name, task in archives.TASKS.items():
        kind = name.partition("_")[0]
        inside = f"{kind}/" if kind in ("gsm8k", "piqa") else ""
        urls = [f"{base}/{at[kind]}"] if kind in at else [f"{base}/{inside}{u.rsplit('/', 1)[-1]}" for u in task.urls]
        monkeypatch.setitem(archives.TASKS, name, archives.Task(tuple(urls), task.splits, task.rows, task.names))
    yield folder
    server.shutdown()
    server.server_close()


def main():
    return runpy.run_path(str(ROOT / "scripts/prepare_eval.py"))["main"]


def first_row(folder, task):
    path = next(iter(sorted((folder / task).glob("*.jsonl"))))
    return json.loads(path.read_text().splitlines()[0])


def test_every_task_is_made_of_what_is_published_and_lm_eval_reads_it(published, tmp_path, capsys):
    out = tmp_path / "eval"
    main()((), out)
    told = capsys.readouterr().out
    for task, fields in FIELDS.items():
        assert set(first_row(out, task)) == fields, task
    assert first_row(out, "arc_easy")["choices"] == {"text": [f"text {i}" for i in range(4)], "label": list("ABCD")}
    assert [json.loads(x)["label"] for x in (out / "piqa/validation.jsonl").read_text().splitlines()] == [1, 0, 1]
    assert first_row(out, "mmlu_anatomy") == {
        "question": "Why, though?", "subject": "anatomy", "choices": ["1", "2", "3", "4"], "answer": 2,
    }  # fmt: skip
    assert first_row(out, "truthfulqa_gen")["correct_answers"] == ["Yes", "Of course"]
    tasks = [task for task in FIELDS if task not in ("ifeval", "truthfulqa_gen")]  # which need further packages
    args = EvalArgs(eval_tasks=tuple(tasks), task_data=dict.fromkeys(tasks, out))
    assert len(prepare(args)[1]) == len(tasks)
    assert '--task_data "{arc_easy: ' in told and f"mmlu: {out}" in told


def test_a_copied_folder_is_read_as_it_is(tmp_path, capsys):
    source, out = publish(tmp_path / "copy"), tmp_path / "eval"
    main()(("piqa", "mmlu", "arc_challenge"), out, _without_copies(source))
    assert (out / "mmlu_virology/dev.jsonl").is_file() and (out / "piqa/train.jsonl").is_file()
    with pytest.raises(UserError, match=r"both .* may be train.jsonl; put the files of each task into a folder"):
        main()(("gsm8k",), out, _scattered(tmp_path))
    with pytest.raises(UserError, match=r"boolq: there is no BoolQ/train.jsonl in .*; it is published at https://dl"):
        main()(("boolq",), out, source / "piqa")


def _without_copies(source):
    """MMLU's archive alone: beside its files, each would be there twice."""
    import shutil

    shutil.rmtree(source / "unpacked")
    return source


def _scattered(tmp_path):
    for name in ("one", "two"):
        (tmp_path / "scattered" / name).mkdir(parents=True)
        (tmp_path / "scattered" / name / "train.jsonl").write_text("{}\n")
    return tmp_path / "scattered"


def test_mistakes_and_damaged_files_are_one_line(published, tmp_path):
    with pytest.raises(UserError, match="--eval_tasks: hellaswog is none of arc_easy"):
        main()(("hellaswog",), tmp_path / "eval")
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        main()(("piqa",), tmp_path / "eval", tmp_path / "nowhere")
    (published / "piqa/valid-labels.lst").write_text("1\n")
    with pytest.raises(UserError, match=r"is not what its authors publish \(ValueError: 3 questions and 1 labels\)"):
        main()(("piqa",), tmp_path / "eval")
    (published / "mc_task.json").write_text('[{"question": "Is it?"}]')
    with pytest.raises(UserError, match=r"mc_task.json is not what its authors publish \(KeyError"):
        main()(("truthfulqa",), tmp_path / "eval")
    (published / "hellaswag_val.jsonl").unlink()
    with pytest.raises(UserError, match=r"hellaswag_val.jsonl could not be downloaded .HTTP 404"):
        main()(("hellaswag",), tmp_path / "eval")


@pytest.mark.skipif(not (SHARED / "mc_task.json").is_file(), reason="needs the files that TruthfulQA's authors publish")
def test_truthfulqa_becomes_the_rows_of_the_hub(tmp_path):
    main()(("truthfulqa", "truthfulqa_gen"), tmp_path, SHARED)
    assert (tmp_path / "truthfulqa_mc2/validation.jsonl").read_text().splitlines() and [
        json.loads(line) for line in (tmp_path / "truthfulqa_mc1/validation.jsonl").read_text().splitlines()
    ] == [json.loads(line) for line in (SHARED / "truthfulqa_mc.jsonl").read_text().splitlines()]
    assert len((tmp_path / "truthfulqa_gen/validation.jsonl").read_text().splitlines()) == 817
