"""Without HELM: what it asks and how it scores are ours to the byte, and mistakes end in one line.

What the real helm-run asked and found is in helm_recorded.json, by record_helm.py.
"""

import json
import os
import pickle
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from conftest import assert_one_line_error
from helm_data import ENTRIES, Words, prompt_hash, write_helm_data, written
from script_processes import run

from lit_gpt.args import HelmArgs, ValidationArgs
from lit_gpt.checkpoints.base import load_base
from lit_gpt.errors import UserError
from lit_gpt.evaluation.helm import programs
from lit_gpt.evaluation.helm.conf import challenge, parsed, read_conf, write_conf
from lit_gpt.evaluation.helm.instances import TRAIN
from lit_gpt.evaluation.helm.metrics import Stat, stats_of
from lit_gpt.evaluation.helm.prompts import Window, prompts
from lit_gpt.evaluation.helm.results import Row, compared, read_rows
from lit_gpt.evaluation.helm.run import load_tasks, row_of
from lit_gpt.evaluation.score import task_score
from lit_gpt.lightning import Fabric

RECORDED = json.loads(Path(__file__).with_name("helm_recorded.json").read_text(encoding="utf-8"))
FEW = "truthful_qa:task=mc_single,data_augmentation=robustness"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("helm-data")
    write_helm_data(folder)
    slips = folder / "perturbations" / "misspellings"
    slips.mkdir()
    (slips / "correct_to_misspelling.json").write_text(json.dumps(RECORDED["misspellings"]))
    return folder


@cache
def asked(entry, data):
    """The scenario of an entry, with its questions, prompts and what is taken for the model's answers."""
    write_conf(data / "run_specs.conf", [parsed(entry)])
    args = HelmArgs(conf=data / "run_specs.conf", scenario_data=data, max_eval_instances=ENTRIES[entry])
    (task,) = load_tasks(args)
    words, scenario = Words(), task.scenario
    questions = [instance for instance in task.asked if instance.split != TRAIN]
    made = prompts(scenario.adapter, task.asked, questions, Window(words.encode, words.decode))
    return scenario, [(prompt, written(prompt.text, scenario.adapter.max_tokens)) for prompt in made]


@pytest.mark.parametrize("entry", ENTRIES)
def test_prompts_are_those_of_helm_to_the_byte(entry, data):
    scenario, made = asked(entry, data)
    recorded = RECORDED["entries"][entry]
    ours = [(p.instance.id, p.instance.perturbation, prompt_hash(p.text)) for p, _ in made]
    assert recorded["first_prompt"] in (None, made[0][0].text)
    assert ours == [(a["id"], a["perturbation"], a["hash"]) for a in recorded["asked"]]
    for a in recorded["asked"]:
        assert (a["max_tokens"], a["temperature"]) == (scenario.adapter.max_tokens, scenario.adapter.temperature)
        assert tuple(a["stop"]) == scenario.adapter.stop


@pytest.mark.parametrize("entry", ENTRIES)
def test_scores_are_those_of_helm_on_the_same_texts(entry, data):
    scenario, made = asked(entry, data)
    stats = stats_of(scenario, [(prompt.instance, text) for prompt, text in made])
    theirs = {Stat(*name): mean for *name, mean in RECORDED["entries"][entry]["scores"] if name[0] != "num_instances"}
    theirs = {s._replace(computed_on=s.computed_on if s.perturbation else ""): mean for s, mean in theirs.items()}
    ours = {s for s in stats if s.metric in {t.metric for t in theirs}}
    if entry.startswith("summarization"):  # recorded without what HELM makes of all questions
        ours = {s for s in ours if s.perturbation is None}
    assert theirs and ours == theirs.keys()
    for stat, mean in theirs.items():
        assert stats[stat] == pytest.approx(mean, abs=1e-12), stat
    assert any(0 < mean < 1 for mean in theirs.values())  # some answers are right, and some are not


def test_the_recorded_runs_show_what_is_easily_done_otherwise():
    """So that the comparison above means something: examples left out, prompts cut, every perturbation."""
    kinds = {a["perturbation"] for e in RECORDED["entries"].values() for a in e["asked"]}
    assert kinds == {None, "mild_mix", "dialect", "gender", "person_name"}
    bbq = [mean for name, *_, mean in RECORDED["entries"]["bbq:subject=all,data_augmentation=canonical"]["scores"]
           if name == "bbq_metric_ambiguous_bias"]  # fmt: skip
    assert any(bbq)


def test_examples_are_left_out_and_questions_cut_where_a_prompt_is_too_long(data):
    texts = [prompt.text for prompt, _ in asked("gsm:", data)[1]]
    assert {text.count("\nA: ") for text in texts} > {0}
    assert any(not text.endswith("A:") for text in texts)


def test_the_table_shows_what_helms_files_say(data, tmp_path):
    for recorded in RECORDED["entries"].values():
        folder = tmp_path / recorded["run"]
        folder.mkdir()
        stats = []
        for metric, split, by, on, mean in recorded["scores"]:
            perturbation = {"perturbation": {"name": by, "computed_on": on}} if by else {}
            stats.append({"name": {"name": metric, "split": split, **perturbation}, "mean": mean})
        (folder / "stats.json").write_text(json.dumps(stats))
    rows = read_rows(tmp_path)
    assert len(rows) == len(ENTRIES)
    for entry in ENTRIES:
        scenario, made = asked(entry, data)
        questions = [prompt.instance for prompt, _ in made]
        ours = row_of(scenario, questions, stats_of(scenario, [(p.instance, text) for p, text in made]))
        theirs = rows[scenario.name]
        assert (ours.metric, ours.split, ours.accuracy) == (theirs.metric, theirs.split, pytest.approx(theirs.accuracy))
        if not entry.startswith("summarization"):
            assert ours[3:] == (pytest.approx(theirs.robustness), pytest.approx(theirs.fairness), theirs.n)


def test_the_list_of_the_challenge_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "run_specs.conf"
    write_conf(path, challenge())
    assert read_conf(path) == challenge() and len(challenge()) == 30
    path.write_text(
        "# mine\nentries: [\n // not this: {description: 'gsm:'}\n  {description: 'bbq:subject=Age', priority: 2}]"
    )
    assert [entry.description for entry in read_conf(path)] == ["bbq:subject=Age"]
    path.write_text("entries: []")
    with pytest.raises(UserError, match="no entry"):
        read_conf(path)


def test_the_mean_win_rate_is_the_chance_to_beat_a_baseline_with_ties_as_halves():
    def row(accuracy):
        return Row("m", "test", accuracy, None, 0.5, n=1)

    ours = {"a": row(0.5), "b": row(0.2), "c": row(0.9)}
    others = {"x": {"a": row(0.4), "b": row(0.2)}, "y": {"a": row(0.6), "b": row(0.3)}}
    (line,) = compared(ours, others)  # a: 1 of 2; b: 0.5 of 2; c: nobody has it
    assert line.endswith("accuracy 0.375, robustness -, fairness 0.500")
    assert compared(ours, {}) == []


@pytest.mark.parametrize(
    "entry, said",
    [
        ("mmlu:subject=anatomy", "No such file.*docs/helm.md"),
        ("mmlu:subject=high_school_physics,method=multiple_choice_separate_original", "method=multiple_choice_joint"),
        ("mmlu:subject=high_school_physics,colour=red", "colour"),
        ("mmlu:subject=high_school_physics,data_augmentation=dialect_easy", "known here are"),
        ("imdb:", "mini_helm has mmlu"),
        ("truthful_qa", "no such|mc_single"),
    ],
)
def test_a_mistake_in_the_list_is_said_in_one_line(entry, said, data, tmp_path):
    path = tmp_path / "run_specs.conf"
    path.write_text(f'entries: [{{description: "{entry}", priority: 1}}]')
    with pytest.raises(UserError, match=said) as raised:
        load_tasks(HelmArgs(conf=path, scenario_data=data))
    assert "\n" not in str(raised.value)


def test_damaged_data_and_pickles_that_run_code_are_refused(data, tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (ran,)

    folder = tmp_path / "scenarios" / "summarization" / "data"
    folder.mkdir(parents=True)
    (folder / "cnndm.pk").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "scenarios" / "gsm").mkdir()
    (tmp_path / "scenarios" / "gsm" / "gsm_data_train").write_text('{"question": 1}\n')
    for entry, said in (("summarization_cnndm:", "only texts"), ("gsm:", "damaged")):
        write_conf(tmp_path / "run_specs.conf", [parsed(entry)])
        with pytest.raises(UserError, match=said):
            load_tasks(HelmArgs(conf=tmp_path / "run_specs.conf", scenario_data=tmp_path))
    assert not ran.exists()


def test_word_lists_that_are_missing_are_named(data, tmp_path):
    (tmp_path / "scenarios").symlink_to(data / "scenarios")
    write_conf(tmp_path / "run_specs.conf", [parsed("truthful_qa:task=mc_single,data_augmentation=fairness")])
    with pytest.raises(UserError, match=r"SAE_to_AAVE_mapping\.json"):
        load_tasks(HelmArgs(conf=tmp_path / "run_specs.conf", scenario_data=tmp_path))


def test_the_misspellings_are_those_of_the_helm_that_eval_helm_would_run(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "_ENVIRONMENT", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert programs.find_misspellings() is None
    for name in ("own", "theirs"):
        slips = tmp_path / name / "lib/python3.11/site-packages/helm/benchmark/augmentations"
        slips.mkdir(parents=True)
        (slips / "correct_to_misspelling.json").write_text("{}")
        (tmp_path / name / "bin").mkdir()
        (tmp_path / name / "bin" / "helm-run").touch(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "helm-run").symlink_to(tmp_path / "theirs" / "bin" / "helm-run")
    found = programs.find_misspellings()
    assert found and found.is_relative_to(tmp_path / "theirs") and found.is_file()
    monkeypatch.setattr(programs, "_ENVIRONMENT", tmp_path / "own")
    found = programs.find_misspellings()
    assert found and found.is_relative_to(tmp_path / "own") and programs.helm_program("helm-run").parts[-3] == "own"


def test_the_script_scores_a_model_and_compares_it_with_stored_results(checkpoint, data, tmp_path):
    write_conf(tmp_path / "run_specs.conf", [parsed(FEW), parsed("bbq:subject=Age")])
    flags = ["--checkpoint_dir", checkpoint, "--conf", tmp_path / "run_specs.conf", "--scenario_data", data]
    flags += ["--max_eval_instances", "5"]
    process = run("eval/mini_helm.py", *flags, "--out_dir", "out/one", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["scenario", "truthful_qa:task=mc_single", "bbq:subject=Age", "mean"]
    results = json.loads((tmp_path / "out" / "one" / "results.json").read_text())
    assert results["scenarios"]["truthful_qa:task=mc_single"]["n"] == 5
    rows = [json.loads(line) for line in (tmp_path / "out" / "one" / "asked.jsonl").read_text().splitlines()]
    assert len(rows) > 10 and {row["perturbation"] for row in rows} == {None, "mild_mix"}
    again = run("eval/mini_helm.py", *flags, "--baselines", "out/one/results.json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[:4] == lines
    assert "accuracy 0.500, robustness 0.500, fairness 0.500" in again.stdout


def test_scripts_refuse_what_is_not_there_in_one_line(checkpoint, data, tmp_path):
    process = run("eval/mini_helm.py", "--checkpoint_dir", checkpoint, "--scenario_data", "nowhere", cwd=tmp_path)
    assert_one_line_error(process, "nowhere", "--scenario_data")
    process = run("eval/mini_helm.py", "--checkpoint_dir", checkpoint, "--baselines", "no.json", cwd=tmp_path)
    assert_one_line_error(process, "no.json")


def test_the_best_checkpoint_may_be_the_one_with_the_highest_mean_score(checkpoint, data, tmp_path):
    write_conf(tmp_path / "run_specs.conf", [parsed(FEW), parsed("bbq:subject=Age")])
    fabric = Fabric(accelerator="cpu", devices=1)
    model, _ = load_base(fabric, checkpoint, None)
    own = {"best_task": "mini_helm", "best_task_data": data, "best_task_path": tmp_path / "run_specs.conf"}

    def score_of(**more):
        return task_score(fabric, model, checkpoint, ValidationArgs(**own, **more), "alpaca")

    score = score_of(best_limit=4)()
    script = ["--conf", tmp_path / "run_specs.conf", "--scenario_data", data, "--max_eval_instances", "4"]
    process = run("eval/mini_helm.py", "--checkpoint_dir", checkpoint, *script, cwd=tmp_path)
    assert process.stdout.splitlines()[-1].split()[1] == f"{score:.3f}"
    for flag in ({"best_metric": "charm"}, {"best_apply_prompt_style": True}):
        with pytest.raises(UserError, match=next(iter(flag))):
            score_of(**flag)


def test_a_program_of_helm_ends_with_the_server_that_it_asks(tmp_path):
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    log, waits = tmp_path / "log", "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    started = time.monotonic()
    with pytest.raises(UserError, match="the server ended"):
        programs.run_program([sys.executable, "-c", waits], folder=tmp_path, log=log, environment={}, server=server)
    assert time.monotonic() - started < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
