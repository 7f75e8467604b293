"""helm-run against the running server: it completes, and what it records are the numbers of plain forward passes.

HELM is no requirement of ours: it fixes old versions of what others need, so it lives in an environment of its own,
which `make helm` makes. Without one these tests are skipped. Nothing is downloaded: two scenarios come with HELM or
read a file of the user's, and the files of two others are put where HELM would have put them.
"""

import json
import math
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT, assert_one_line_error, ours_of, tiny_hf, write_tokenizer
from helm_data import write_helm_data
from script_processes import run, start
from serving import greedy_of, loaded_from, logprobs_of, serving, until

from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.files import save_state

OWN = ROOT / ".venv-helm" / "bin" / "helm-run"
HELM_RUN = str(OWN) if OWN.is_file() else shutil.which("helm-run")
N = 3
"""Instances of each scenario."""
WINDOW = 2048
"""Tokens of a text that HELM reads at once from `neurips/local`."""
CHECKED = 6
"""Tokens of a generated text that are compared."""
START = "<|endoftext|>"
MCQA = "custom_mcqa:path=mcqa.jsonl,num_train_instances=2,method=multiple_choice"
ENTRIES = {
    "joint": f"{MCQA}_joint",
    "separate": f"{MCQA}_separate_original",
    "calibrated": f"{MCQA}_separate_calibrated",
    "generation": "gsm:",
    "language": "wikitext_103:",
    "synthetic": "synthetic_reasoning:mode=pattern_match",
}
"""Kind of adapter -> HELM's name of a run."""


SCENARIOS = (
    *("mmlu:subject=high_school_physics,data_augmentation=canonical", "truthful_qa:task=mc_single", "bbq:subject=Age"),
    "big_bench:task=analytic_entailment,subtask=,max_train_instances=3",
)
"""What the two scripts are compared on."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of a tiny model that reads as much at once as HELM gives it."""
    folder = tmp_path_factory.mktemp("helm") / "tiny"
    theirs = tiny_hf("llama-gqa", max_position_embeddings=WINDOW)
    model = ours_of(theirs, "llama-gqa")
    folder.mkdir()
    write_tokenizer(folder)
    save_state(model.state_dict(), folder / WEIGHTS)
    model.config.to_json(folder / CONFIG)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return loaded_from(folder)


def write_data(folder):
    """The files that scenarios read, where HELM looks for them."""
    scenarios = folder / "benchmark_output" / "scenarios"
    rows = []
    for i in range(N + 4):
        options = [{"output": {"text": f"{i + j}"}, "tags": ["correct"] * (j == 2)} for j in range(4)]
        split = "train" if i < 4 else "test"
        rows.append({"input": {"text": f"What is {i} and 2?"}, "references": options, "split": split, "id": f"id{i}"})
    (scenarios / "custom_mcqa").mkdir(parents=True)
    (scenarios / "custom_mcqa" / "mcqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (scenarios / "gsm").mkdir()
    for split, n in (("train", 6), ("test", N)):
        sums = [{"question": f"Add {i} and 5. " * 24, "answer": f"It is {i + 5}.\n#### {i + 5}"} for i in range(n)]
        (scenarios / "gsm" / f"gsm_data_{split}").write_text("".join(json.dumps(row) + "\n" for row in sums))
    (scenarios / "wikitext_103" / "data").mkdir(parents=True)
    articles = [f" \n = The {i} thing = \n \n" + f" the hand and {i} other things \n" * 140 for i in range(60)]
    (scenarios / "wikitext_103" / "data" / "wiki.test.raw").write_text("".join(articles))


@pytest.fixture(scope="module")
def runs(loaded, tmp_path_factory):
    """Kind of adapter -> folder of the run's results."""
    if HELM_RUN is None:
        pytest.skip("HELM is not installed: `make helm` gives it an environment of its own")
    folder = tmp_path_factory.mktemp("helm-run")
    write_data(folder)
    entries = [entry + ("" if entry.endswith(":") else ",") + "model=neurips/local" for entry in ENTRIES.values()]
    with serving(loaded, max_rows=16) as client:
        env = os.environ | {"HELM_HTTP_MODEL_BASE_URL": str(client.base_url), "HF_HUB_OFFLINE": "1"}
        env.pop("PYTHONPATH", None)
        command = [HELM_RUN, "--run-entries", *entries, "--suite", "v1", "--max-eval-instances", str(N), "-n", "16"]
        process = subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, timeout=580)
    assert process.returncode == 0, process.stderr[-4000:]
    found = sorted((folder / "benchmark_output" / "runs" / "v1").glob("*/scenario_state.json"))
    named = {}
    for kind, entry in ENTRIES.items():
        part = entry.rpartition("method=")[2] if "method=" in entry else entry.partition(":")[0]
        (named[kind],) = [path.parent for path in found if part in path.parent.name]
    return named


def states_of(folder):
    """What HELM recorded of each request of a run."""
    states = json.loads((folder / "scenario_state.json").read_text(encoding="utf-8"))["request_states"]
    assert states and all(state["result"]["success"] for state in states)
    return states


def requests_of(folder):
    """(request, completion) of each request of a run."""
    return [(state["request"], state["result"]["completions"][0]) for state in states_of(folder)]


def plain(loaded, text):
    """Tokens of a prompt as HELM writes it, and the log-probabilities of what follows each."""
    begun = text.startswith(START)
    rest = loaded.tokenizer.encode(text.removeprefix(START), bos=False) if text != START else []
    ids = [loaded.tokenizer.bos_id] * begun + rest
    return ids, logprobs_of(loaded.engine.model, ids)


@pytest.mark.parametrize("kind", ["separate", "calibrated", "language"])
def test_what_helm_scores_has_the_log_probabilities_of_plain_forward_passes(runs, loaded, kind):
    asked = requests_of(runs[kind])
    assert len(asked) >= N
    for request, completion in asked:
        assert request["echo_prompt"] and request["max_tokens"] == 0 and completion["text"] == request["prompt"]
        ids, logprobs = plain(loaded, request["prompt"])
        want = [0.0] + [float(logprobs[i - 1, ids[i]]) for i in range(1, len(ids))]
        got = [token["logprob"] for token in completion["tokens"]]
        torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["joint", "generation", "synthetic"])
def test_what_helm_lets_generate_are_the_tokens_of_plain_forward_passes(runs, loaded, kind):
    asked = requests_of(runs[kind])
    assert len(asked) == N
    for request, completion in asked:
        ids, _ = plain(loaded, request["prompt"])
        assert len(ids) + request["max_tokens"] <= WINDOW
        n = min(CHECKED, request["max_tokens"])
        new = greedy_of(loaded.engine.model, ids, n)
        logprobs = logprobs_of(loaded.engine.model, ids + new)[len(ids) - 1 : -1]
        want = [float(row[token]) for row, token in zip(logprobs, new, strict=True)]
        got = [token["logprob"] for token in completion["tokens"]][:n]
        text = loaded.tokenizer.decode(new)
        if any(stop in text for stop in request["stop_sequences"]) or loaded.tokenizer.eos_id in new:
            want = want[: len(got)]
        else:
            assert len(got) == n
        torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=0, atol=1e-3)
        assert not any(stop in completion["text"] for stop in request["stop_sequences"])


def stat(folder, name):
    """The value of a metric on the test split, without perturbations."""
    stats = json.loads((folder / "stats.json").read_text(encoding="utf-8"))
    (found,) = [s for s in stats if s["name"]["name"] == name and "perturbation" not in s["name"]]
    return found["mean"]


def test_a_text_of_several_windows_has_the_score_of_its_tokens(runs):
    states = states_of(runs["language"])
    assert len(states) > N  # instances
    scored = [s["result"]["completions"][0]["tokens"][s["num_conditioning_tokens"] :] for s in states]
    total = sum(token["logprob"] for tokens in scored for token in tokens)
    n_tokens = sum(map(len, scored))
    assert stat(runs["language"], "logprob") == pytest.approx(total / len(states), rel=1e-6)  # a window's
    assert stat(runs["language"], "perplexity") == pytest.approx(math.exp(-total / n_tokens), rel=1e-6)


@pytest.mark.parametrize("kind", ["separate", "calibrated"])
def test_the_chosen_answers_are_those_of_plain_forward_passes(runs, loaded, kind):
    """An answer's score is the mean log-probability of its tokens, or how far the question raises their sum."""
    scores = {}
    for state in states_of(runs[kind]):
        answer = state["instance"]["references"][state["reference_index"]]["output"]["text"]
        ids, logprobs = plain(loaded, state["request"]["prompt"])
        n = len(loaded.tokenizer.encode(f" {answer}", bos=False))
        total = sum(float(logprobs[i - 1, ids[i]]) for i in range(len(ids) - n, len(ids)))
        of = scores.setdefault(state["instance"]["id"], [0.0] * 4)
        share = total / n if kind == "separate" else total
        of[state["reference_index"]] += -share if state["request_mode"] == "calibration" else share
    assert len(scores) == N
    right = [max(range(4), key=of.__getitem__) == 2 for of in scores.values()]  # as `write_data` has it
    assert stat(runs[kind], "exact_match") == pytest.approx(sum(right) / N)


@pytest.fixture(scope="module")
def work(folder, tmp_path_factory):
    """A folder with data and a list of what to run, and flags for both scripts."""
    work = tmp_path_factory.mktemp("helm-scripts")
    write_helm_data(work / "data")
    listed = [entry + ("" if entry.endswith(":") else ",") + "model=neurips/local" for entry in SCENARIOS]
    entries = "\n".join(f'{{description: "{entry}", priority: 1}}' for entry in listed)
    (work / "run_specs.conf").write_text(f"entries: [\n{entries}\n]\n")
    flags = ["--checkpoint_dir", folder, "--conf", "run_specs.conf", "--scenario_data", "data"]
    return work, [*flags, "--max_eval_instances", "4"]


def needs_helm():
    if HELM_RUN is None:
        pytest.skip("HELM is not installed: `make helm` gives it an environment of its own")


def test_one_command_runs_helm_and_mini_helm_asks_says_and_scores_the_same(work):
    needs_helm()
    at, flags = work
    theirs = run("eval/helm.py", *flags, "--out_dir", "out/helm/it", cwd=at)
    assert theirs.returncode == 0, theirs.stderr
    ours = run("eval/mini_helm.py", *flags, "--out_dir", "out/mini_helm/it", cwd=at)
    assert ours.returncode == 0, ours.stderr
    assert theirs.stdout == ours.stdout
    suite = at / "out" / "helm" / "it" / "benchmark_output" / "runs" / "v1"
    assert (suite / "groups.json").is_file()  # by helm-summarize
    want = {
        (state["request"]["prompt"], state["result"]["completions"][0]["text"])
        for path in suite.glob("*:*/scenario_state.json")
        for state in json.loads(path.read_text(encoding="utf-8"))["request_states"]
    }
    lines = (at / "out" / "mini_helm" / "it" / "asked.jsonl").read_text(encoding="utf-8").splitlines()
    assert {(row["prompt"], row["text"]) for row in map(json.loads, lines)} == want
    results = [json.loads((at / "out" / kind / "it" / "results.json").read_text()) for kind in ("helm", "mini_helm")]
    helms, own = (found["scenarios"] for found in results)
    assert helms.keys() == own.keys() and len(own) == len(SCENARIOS)
    for name, row in own.items():
        assert {k: v if isinstance(v, str) else pytest.approx(v) for k, v in row.items()} == helms[name]
    assert not processes_of(at)


def processes_of(folder):
    """Command lines of processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            at, command = (process / "cwd").resolve(), (process / "cmdline").read_bytes()
        except OSError:
            continue
        if at.is_relative_to(folder.resolve()):
            found.append(command)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_helm_and_the_server(work, tmp_path, number):
    needs_helm()
    at, flags = work
    process = start("eval/helm.py", *flags, "--out_dir", tmp_path / "out", cwd=at, stderr=subprocess.PIPE, anew=True)
    log = tmp_path / "out" / "helm-run.log"
    until(lambda: (log.is_file() and log.stat().st_size > 0) or process.poll() is not None)
    assert process.poll() is None and len(processes_of(at)) + len(processes_of(tmp_path)) >= 3
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert not processes_of(at) and not processes_of(tmp_path)


def test_what_helm_fails_on_is_said_in_one_line_and_ends_the_server(work, tmp_path):
    needs_helm()
    at, flags = work
    (tmp_path / "bad.conf").write_text('entries: [{description: "no_such_thing:model=neurips/local", priority: 1}]')
    process = run("eval/helm.py", *flags, "--conf", tmp_path / "bad.conf", "--out_dir", tmp_path / "out", cwd=at)
    assert_one_line_error(process, "helm-run failed", "no_such_thing", "helm-run.log")
    assert not processes_of(at) and not processes_of(tmp_path)


def test_a_run_of_helm_that_fails_leaves_the_table_of_the_others(work, tmp_path):
    """HELM's metric of summaries needs packages that are not installed with it."""
    needs_helm()
    at, flags = work
    entries = ("summarization_cnndm:model=neurips/local", "bbq:subject=Age,model=neurips/local")
    listed = "\n".join(f'{{description: "{entry}", priority: 1}}' for entry in entries)
    (tmp_path / "two.conf").write_text(f"entries: [\n{listed}\n]\n")
    few = ["--conf", tmp_path / "two.conf", "--max_eval_instances", "1", "--out_dir", tmp_path / "out"]
    process = run("eval/helm.py", *flags, *few, cwd=at)
    assert_one_line_error(process, "1 of HELM's runs failed", "summarization_cnndm", "helm-run.log")
    assert [line.split()[0] for line in process.stdout.splitlines()] == ["scenario", "bbq:subject=Age", "mean"]
