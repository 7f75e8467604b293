"""A comparison says of a run what its answers allow: better, worse, or that so many questions show no difference."""

import json
import runpy
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import ROOT
from lm_eval_reference import write_rows

from lit_gpt.args import EvalArgs, FullArgs, LoRAArgs
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, save_run
from lit_gpt.checkpoints.trained import save_trained, trained_path
from lit_gpt.errors import UserError
from lit_gpt.evaluation.comparing.page import explained, text_table
from lit_gpt.evaluation.comparing.statistics import bootstrap_interval, mcnemar, mcnemar_needs
from lit_gpt.evaluation.comparing.verdicts import SHOWN, compare
from lit_gpt.lightning import Fabric
from lit_gpt.methods import full, lora
from lit_gpt.tokenizer import Tokenizer

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: [" the king", " a queen"]
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""
N = 30
ANSWERS = (" the king", " a queen")


def main():
    return runpy.run_path(str(ROOT / "eval/compare.py"))["main"]


@pytest.fixture
def tasks(checkpoint, tmp_path):
    """A folder with two tasks, a group of them, of whose questions the base answers all but every fifth wrongly."""
    from lit_gpt.evaluation.run import measured
    from lit_gpt.evaluation.tasks import prepare

    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"text": f"{n} or {n * n} says", "gold": 0} for n in range(N)]
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    model, _ = load_base(fabric, checkpoint)
    (folder / "kings.yaml").write_text(TASK.format(name="kings", data=write_rows(folder / "kings.jsonl", rows)))
    args = EvalArgs(eval_tasks=("kings",), task_path=folder, log_samples=True, bootstrap_iters=0)
    common = {"tokenizer": Tokenizer(checkpoint), "args": args, "style": None, "about": {}}
    found = measured(fabric, model, tasks=prepare(args), **common)["samples"]["kings"]
    for row, sample in zip(rows, sorted(found, key=lambda s: s["doc_id"]), strict=True):
        liked = max(range(2), key=lambda i: sample["filtered_resps"][i][0])
        row["gold"] = liked if sample["doc_id"] % 5 == 0 else 1 - liked
    for name, part in {"kings": rows[: N // 2], "queens": rows[N // 2 :]}.items():
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=write_rows(folder / f"{name}.jsonl", part)))
    (folder / "court.yaml").write_text(
        "group: court\ntask: [kings, queens]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    return folder, rows


def save(checkpoint, run_dir, method, model, args, digest, style="plain"):
    run_dir.mkdir()
    save_trained(model, trained_path(run_dir, method))
    save_run(Run(method, asdict(args), style, str(checkpoint), digest, {}, {}, {}), run_dir)
    return run_dir


def trained(checkpoint, run_dir, rows, method="lora", steps=40, style="plain"):
    """A run that learns the answers to `rows`; with 0 steps it learns nothing."""
    model, digest = load_base(Fabric(accelerator="cpu", devices=1, precision="32-true"), checkpoint)
    args = LoRAArgs(lora_r=8, lora_mlp=True, lora_head=True, lora_dropout=0.0) if method == "lora" else FullArgs()
    torch.manual_seed(1)
    {"lora": lora, "full": full}[method].inject(model, args)
    encode = Tokenizer(checkpoint).encode
    asked = [len(encode(row["text"])) for row in rows]
    texts = [torch.tensor(encode(row["text"] + ANSWERS[row["gold"]])) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-100)
    for row, n in zip(labels, asked, strict=True):
        row[:n] = -100
    trains = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trains, lr=3e-2 if method == "lora" else 3e-3)
    for _ in range(steps):
        logits = model(ids[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return save(checkpoint, run_dir, method, model, args, digest, style)


def test_what_learned_is_better_and_what_did_not_learn_shows_no_difference(checkpoint, tmp_path, tasks, capsys):
    folder, rows = tasks
    good = trained(checkpoint, tmp_path / "good", rows)
    same = trained(checkpoint, tmp_path / "same", rows, steps=0)
    whole = trained(checkpoint, tmp_path / "whole", rows, method="full", steps=15)
    args = EvalArgs(eval_tasks=("court",), task_path=folder, bootstrap_iters=0)
    out = tmp_path / "out"
    main()(checkpoint, (good, same, whole), "32-true", out_dir=out, evaluation=args)
    found = json.loads((out / "comparison.json").read_text())["runs"]
    assert list(found) == [str(good), str(same), str(whole)]
    by_task = {run: {c["task"]: c for c in each} for run, each in found.items()}
    for run in (good, whole):
        court = by_task[str(run)]["court"]
        assert court["verdict"] == "better" and court["p"] < 0.05 and court["n"] == N, court["reason"]
        assert court["interval"][0] > 0 and court["scores"][0] == pytest.approx(6 / N)
        assert court["scores"][1] - court["scores"][0] == pytest.approx(court["difference"])
        assert court["won"] + court["lost"] == len(court["flips"]) and court["won"] > court["lost"] + 5
        flip = court["flips"][0]
        assert (
            flip["question"].endswith("says") and flip["values"] == [0.0, 1.0] and flip["task"] in ("kings", "queens")
        )
        assert flip["answers"][1].startswith(flip["target"]) and not flip["answers"][0].startswith(flip["target"])
    for task, n in {"court": N, "kings": N // 2, "queens": N // 2}.items():
        c = by_task[str(same)][task]
        assert (
            c["verdict"] == f"no difference that {n} questions can show"
            and c["reason"] == "no question has another value"
        )
    page, printed = (out / "comparison.html").read_text(), capsys.readouterr().out
    assert "better" in printed and "no difference that 30 questions can show" in printed
    assert "<details>" in page and "says" in page and "http" not in page


def test_a_run_has_the_score_that_the_harness_gives_it(checkpoint, tmp_path, tasks):
    folder, rows = tasks
    run = trained(checkpoint, tmp_path / "run", rows, steps=5)
    args = EvalArgs(eval_tasks=("kings",), task_path=folder, bootstrap_iters=0, save_filepath=tmp_path / "r.json")
    runpy.run_path(str(ROOT / "eval/lm_eval_harness_lora.py"))["main"](checkpoint, run, "32-true", evaluation=args)
    alone = json.loads((tmp_path / "r.json").read_text())["results"]["kings"]["acc,none"]
    args = EvalArgs(eval_tasks=("kings",), task_path=folder, bootstrap_iters=0)
    main()(checkpoint, (run,), "32-true", out_dir=tmp_path / "out", evaluation=args)
    (c,) = json.loads((tmp_path / "out/comparison.json").read_text())["runs"][str(run)]
    assert c["scores"][1] == alone


def test_mistakes_are_one_line_before_a_model_is_loaded(checkpoint, tmp_path, tasks, downloaded):
    folder, rows = tasks
    run = trained(checkpoint, tmp_path / "run", rows, steps=0)
    other = trained(checkpoint, tmp_path / "other", rows, steps=0, style="alpaca")
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    record = json.loads((run / "finetuned.json").read_text())
    (stranger / "finetuned.json").write_text(json.dumps(record | {"base_digest": "x", "base": "elsewhere"}))
    args = EvalArgs(eval_tasks=("kings",), task_path=folder)
    styled = EvalArgs(eval_tasks=("kings",), task_path=folder, apply_prompt_style=True)
    saved = EvalArgs(eval_tasks=("kings",), task_path=folder, save_filepath=tmp_path / "r.json")
    for runs, given, message in (
        ((), args, "--finetuned_path is missing"),
        ((run, run), args, "names .*run twice"),
        ((tmp_path / "nothing",), args, "there is no .*nothing"),
        ((stranger,), args, "was trained on other weights"),
        ((run, other), styled, "was trained in the prompt style plain and .*other in alpaca"),
        ((run,), saved, "a comparison is written to --out_dir"),
    ):
        with pytest.raises(UserError, match=message) as e:
            main()(checkpoint, runs, "32-true", out_dir=tmp_path / "out", evaluation=given)
        assert "\n" not in str(e.value)


def test_mcnemar_is_scipys_binomial_test():
    stats = pytest.importorskip("scipy.stats")
    for won, lost in ((0, 0), (1, 0), (5, 0), (6, 0), (10, 3), (3, 10), (50, 50), (800, 700), (4000, 3000)):
        want = stats.binomtest(won, won + lost, 0.5).pvalue if won + lost else 1.0
        assert mcnemar(won, lost) == pytest.approx(want, rel=1e-6)
    assert mcnemar_needs(5) is None and mcnemar_needs(6) == 6
    assert (
        mcnemar(mcnemar_needs(40), 40 - mcnemar_needs(40))
        < 0.05
        < mcnemar(mcnemar_needs(40) - 1, 41 - mcnemar_needs(40))
    )


@pytest.mark.parametrize("n", [12, 60, 800])
def test_the_interval_is_near_scipys_and_that_of_students_t(n):
    stats = pytest.importorskip("scipy.stats")
    x = np.random.default_rng(n).normal(0.1, 0.4, n)
    low, high = bootstrap_interval(x)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1))
    wider = (n / (n - 1)) ** 0.5
    width = high - low
    assert low == pytest.approx(x.mean() - (x.mean() - theirs.confidence_interval.low) * wider, abs=0.05 * width)
    assert high == pytest.approx(x.mean() + (theirs.confidence_interval.high - x.mean()) * wider, abs=0.05 * width)
    exact = stats.t.interval(0.95, n - 1, x.mean(), x.std(ddof=1) / n**0.5)
    assert width == pytest.approx(exact[1] - exact[0], rel=0.2 if n < 20 else 0.05)


def test_equal_models_are_called_different_about_as_often_as_stated():
    rng = np.random.default_rng(0)
    outside = sum(not low <= 0 <= high for low, high in (bootstrap_interval(rng.normal(0, 1, 80)) for _ in range(200)))
    assert 2 <= outside <= 22  # 10 are expected
    wrong = sum(mcnemar(won, 20 - won) < 0.05 for won in rng.binomial(20, 0.5, 1000))
    assert wrong <= 60


def sample(number, value, metric="acc", chosen="none", answer="text"):
    arguments = {"gen_args_0": {"arg_0": f"Question {number}", "arg_1": {}}}
    common = {"doc_id": number, "filter": chosen, "metrics": [metric], "arguments": arguments, "target": "right"}
    return common | {"filtered_resps": [answer], metric: value}


def compared(a, b, metric="acc", higher=True):
    samples = [{"task": [sample(i, v, metric) for i, v in enumerate(values)]} for values in (a, b)]
    return compare(*samples, higher={"task": {metric: higher}}, groups={})


def test_a_lower_loss_is_better_and_a_metric_without_numbers_is_named():
    rng = np.random.default_rng(0)
    a = rng.normal(3, 0.1, 50)
    ((c,), _) = compared(a, a - 0.5 + rng.normal(0, 0.1, 50), "loss", higher=False)
    assert c.verdict == "better" and c.difference < 0 and c.p is None and c.won == 50
    ((c,), _) = compared(a, a + 0.5, "loss", higher=False)
    assert c.verdict == "worse"
    found, notes = compared([(1, 2)] * 3, [(1, 2)] * 3, "word_perplexity")
    assert not found and "word_perplexity has no number for each question" in notes[0]


def test_few_changed_answers_show_nothing_and_the_reason_says_what_would():
    ((c,), _) = compared([0] * 20, [1] * 5 + [0] * 15)
    assert c.verdict == "no difference that 20 questions can show" and "so few" in c.reason
    ((c,), _) = compared([0] * 20, [1] * 6 + [0] * 14)
    assert c.verdict == "better" and "p = 0.031" in c.reason
    ((c,), _) = compared([0] * 8 + [1] * 6, [1] * 8 + [0] * 6)
    assert "12 of these 14 on one side would count" in c.reason and len(c.flips) == 14
    assert [f.values for f in c.flips[:4]] == [(0, 1), (1, 0)] * 2  # won and lost ones in turn


def test_a_table_says_why_an_interval_without_0_shows_no_difference_and_has_no_zero_with_a_minus():
    (five, _) = compared([1] * 60, [0] * 5 + [1] * 55)
    assert not five[0].interval[0] <= 0 <= five[0].interval[1] and five[0].verdict.startswith("no difference")
    assert any("the test counts" in text for text in explained({"run": five}))
    (tiny, _) = compared([0.5] * 9, [0.49999] * 8 + [0.5])
    assert not any("the test counts" in text for text in explained({"run": tiny}))
    assert "0.0000" in text_table(tiny) and "-0.0000" not in text_table(tiny).splitlines()[1]


def test_a_question_is_compared_by_each_filter_and_a_single_question_says_nothing():
    samples = [
        {"t": [sample(0, v, "exact_match", chosen) for chosen, v in values.items()]}
        for values in ({"strict": 0, "flexible": 1}, {"strict": 1, "flexible": 1})
    ]
    found, _ = compare(*samples, higher={}, groups={})
    assert [(c.metric, c.won) for c in found] == [("exact_match,strict", 1), ("exact_match,flexible", 0)]
    assert found[0].verdict == "no difference that 1 question can show" and found[0].interval == (-1, 1)
    assert SHOWN == 20
