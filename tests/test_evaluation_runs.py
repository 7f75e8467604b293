"""A run has one score, whichever script or loop measures it, and whatever made the run."""

import json
import runpy
from dataclasses import asdict

import pytest
import torch
from conftest import ROOT
from lm_eval_reference import write_rows

from lit_gpt.args import EvalArgs, LoRAArgs, ValidationArgs
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, save_run
from lit_gpt.checkpoints.trained import save_trained, trained_path
from lit_gpt.data import store
from lit_gpt.errors import UserError
from lit_gpt.evaluation.run import evaluate
from lit_gpt.evaluation.score import task_score
from lit_gpt.evaluation.tasks import prepare
from lit_gpt.layers import compiled as fused
from lit_gpt.lightning import Fabric
from lit_gpt.methods import lora
from lit_gpt.tokenizer import Tokenizer

ROWS = [{"text": f"{n} and {n} is", "answers": [str(2 * n), "nothing", "a number"], "gold": n % 3} for n in range(1, 9)]
TASK = """
task: {name}
{more}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{answers}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: {second}
"""


@pytest.fixture
def own_tasks(tmp_path):
    """A folder with three tasks: two make a group with a mean of its own, two have a tag, and all have acc."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for n, (name, more) in enumerate({"sums_a": "", "sums_b": "tag: sums", "sums_c": "tag: sums"}.items()):
        data = write_rows(folder / f"{name}.jsonl", ROWS[n : n + 2 + 2 * n])
        text = TASK.format(name=name, more=more, data=data, second=("acc_norm", "acc_bytes")[n == 2])
        (folder / f"{name}.yaml").write_text(text)
    group = "group: both\ntask: [sums_a, sums_c]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (folder / "both.yaml").write_text(group)
    (folder / "bare.yaml").write_text("group: bare\ntask: [sums_a, sums_b]\n")
    return folder


@pytest.fixture
def model(checkpoint):
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    return fabric, load_base(fabric, checkpoint)[0]


def score_of(model, checkpoint, **flags):
    return task_score(*model, checkpoint, ValidationArgs(**flags), "alpaca")


def test_a_checkpoint_is_picked_by_every_name_that_the_evaluation_takes(model, checkpoint, own_tasks):
    args = EvalArgs(eval_tasks=("sums_a", "sums_b", "sums_c"), task_path=own_tasks, bootstrap_iters=0)
    alone = evaluate(*model, Tokenizer(checkpoint), prepare(args), args, None, {})["results"]
    a, b, c = (alone[f"sums_{x}"]["acc,none"] for x in "abc")
    assert len({a, b, c}) > 1
    means = {"sums_b": b, "sums": (b + c) / 2, "bare": (a + b) / 2}  # a task, a tag, a group without a mean
    for name, mean in means.items():
        assert score_of(model, checkpoint, best_task=name, best_task_path=own_tasks)() == pytest.approx(mean), name
    found = score_of(model, checkpoint, best_task="both", best_task_path=own_tasks)()
    assert found == pytest.approx((2 * a + 6 * c) / 8) and found != pytest.approx((a + c) / 2)  # the group's own mean
    assert score_of(model, checkpoint, best_task="bot?", best_task_path=own_tasks)() == found
    with pytest.raises(UserError, match=r"--best_metric acc_bytes: the task sums has acc, acc,none$"):  # of one alone
        score_of(model, checkpoint, best_task="sums", best_task_path=own_tasks, best_metric="acc_bytes")()


def test_a_checkpoint_is_picked_by_a_task_under_its_name_of_2023(model, checkpoint, tmp_path):
    choices = {"choices": ["2", "nothing", "a number"], "labels": [1, 0, 0]}
    rows = [{"question": f"What is {n}?", "mc1_targets": choices, "mc2_targets": choices} for n in range(3)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    found = [
        score_of(model, checkpoint, best_task=name, best_task_data=data)()
        for name in ("truthfulqa_mc", "truthfulqa_mc1", "truthfulqa_mc2")
    ]
    assert found[0] == pytest.approx((found[1] + found[2]) / 2)


def test_a_metric_that_is_better_if_lower_picks_no_checkpoint(model, checkpoint, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", [{"text": "the king"}])
    text = f"task: words\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
    text += 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
    (tmp_path / "words.yaml").write_text(
        f"{text}metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}]"
    )
    for metric in (None, "byte_perplexity"):
        with pytest.raises(UserError, match=r"--best_task words: its \w+_perplexity is better if it is lower"):
            score_of(model, checkpoint, best_task="words", best_task_path=tmp_path / "words.yaml", best_metric=metric)


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_score_during_training_leaves_its_switches_alone(compiled, model, checkpoint, own_tasks):
    seen = []
    model[1].lm_head.register_forward_hook(lambda *_: seen.append(fused._settings["compile"]))
    with fused.compiling(compiled):
        score_of(model, checkpoint, best_task="sums_a", best_task_path=own_tasks)()
        assert fused._settings["compile"] is compiled
    assert set(seen) == {compiled}


def save_lora(checkpoint, run_dir, data, training):
    """A run of LoRA that is far from its base."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    model, digest = load_base(fabric, checkpoint)
    args = LoRAArgs(lora_r=2, lora_key=True, lora_mlp=True)
    lora.inject(model, args)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    run_dir.mkdir()
    save_trained(model, trained_path(run_dir, "lora"))
    save_run(Run("lora", asdict(args), "alpaca", str(checkpoint), digest, data, training, {}), run_dir)
    return run_dir


def main_of(script):
    return runpy.run_path(str(ROOT / "eval" / script))["main"]


def test_both_scripts_give_a_run_the_same_score_to_the_last_bit(checkpoint, tmp_path, own_tasks):
    run_dir = save_lora(checkpoint, tmp_path / "run", {}, {})
    answers = []
    for script in ("lm_eval_harness.py", "lm_eval_harness_lora.py"):
        saved = tmp_path / "r.json"
        args = EvalArgs(eval_tasks=("sums_c",), task_path=own_tasks, log_samples=True, save_filepath=saved)
        main_of(script)(checkpoint, run_dir, "bf16-true", evaluation=args)
        answers.append([s["resps"] for s in json.loads(saved.read_text())["samples"]["sums_c"]])
        assert fused._settings["compile"] is False  # both compile on a GPU, and leave the process as it was
    assert answers[0] == answers[1]


def test_a_run_made_of_an_adapter_is_validated_on_data_that_is_named(checkpoint, tmp_path, capsys):
    run_dir = save_lora(checkpoint, tmp_path / "run", {}, {"from": "hub/adapter"})
    validate = main_of("validate.py")
    with pytest.raises(UserError, match=r"--data_dir is missing; the adapter that .*run was made of"):
        validate(checkpoint, run_dir)
    with pytest.raises(UserError, match="--data_dir is missing; a pretrained model has no data"):
        validate(checkpoint)
    data, tokenizer = tmp_path / "data", Tokenizer(checkpoint)
    rows = store.stack([([5, 6, 7, 8], [-100, 6, 7, 8])] * 3)
    meta = {"checkpoint_dir": str(checkpoint), "tokenizer": tokenizer.fingerprint(), "prompt_style": "alpaca"}
    store.save(data, {"train": rows, "val": rows}, {**meta, "samples": {"train": 3, "val": 3}, "max_seq_length": 16})
    validate(checkpoint, run_dir, data)
    assert "val loss" in (out := capsys.readouterr().out) and "3 samples" in out
