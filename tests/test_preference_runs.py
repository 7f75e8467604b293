"""A run of finetune/preference.py from pairs to results: reference, resuming, an SFT run as its start, plan."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from lit_gpt.args import AdapterArgs, FullArgs, LoRAArgs, PlanArgs, PrepareArgs, RunArgs, TrainArgs, ValidationArgs
from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.args.preferences import PreferenceArgs
from lit_gpt.checkpoints.runs import load_finetuned, read_run
from lit_gpt.data.prepare.preferences.encoder import PreferenceEncoder
from lit_gpt.data.prepare.preferences.layouts import parse_preference
from lit_gpt.data.prepare.run import Files, prepare
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.files import load_state
from lit_gpt.finetuning import finetune
from lit_gpt.merge.compare import texts_to_compare
from lit_gpt.training.validation_data import validated_on

TRAIN = TrainArgs(learning_rate=0.01, batch_size=4, max_steps=2, save_interval=2, keep_last=9, micro_batch_tokens=200)


@pytest.fixture(scope="module")
def place(tmp_path_factory, checkpoint):
    """A folder with prepared pairs, `pairs`, and answers with labels, `labels`."""
    place = tmp_path_factory.mktemp("preferences")
    rows = [{"prompt": f"Say {w} {n}", "chosen": f"{w} " * (1 + n % 5), "rejected": f"no {n}"}
            for w in ("the", "king", "thing", "and") for n in range(6)]  # fmt: skip
    alone = [
        {"prompt": r["prompt"], "completion": r[k], "label": k == "chosen"}
        for r in rows
        for k in ("chosen", "rejected")
    ]
    for name, entries in (("pairs", rows), ("labels", alone)):
        (place / f"{name}.json").write_text(json.dumps(entries))
        args = PrepareArgs(prompt_style="plain", check=False, test_split_fraction=0.2)
        files = Files((place / f"{name}.json",), parse_preference)
        prepare(files, None, place / name, checkpoint, args=args, encoder=PreferenceEncoder)
    return place


@pytest.fixture
def learn(place, checkpoint, tmp_path):
    """Runs what finetune/preference.py runs; returns the folder of the run."""

    def learn(name="run", data="pairs", method="lora", method_args=None, **more):
        train = replace(TRAIN, **more.pop("train", {}))
        preference = PreferenceArgs(**more.pop("preference", {}))
        args = FinetuneArgs(
            method=method,
            method_args=method_args or LoRAArgs(lora_dropout=0.0),
            checkpoint_dir=checkpoint,
            data_dir=place / data,
            out_dir=tmp_path / name,
            train=train,
            validation=ValidationArgs(eval_interval=4),
            preference=preference,
            **more,
        )
        finetune(make_fabric("32-true", args.run.seed), args)
        return tmp_path / name

    return learn


def weights(run_dir):
    return load_state(next(run_dir.glob("lit_model*.pth")), "the finetune script")


def test_a_run_is_written_and_read_back_and_its_reference_stays_beside_the_data(learn, place, checkpoint, capsys):
    run_dir = learn(train={"max_steps": 6})
    record = read_run(run_dir)
    assert record.training["loss"] == "dpo" and record.training["min_chosen_drop"] is None
    model, _ = load_finetuned(make_fabric("32-true", 1), checkpoint, run_dir)
    assert any("lora" in name for name, _ in model.named_parameters())
    report, curve = (run_dir / "report.html").read_text(), (run_dir / "metrics.csv").read_text()
    for part in ("Margin", "Accuracy", "Preferred answers", "preferred answers rated higher"):
        assert part in report
    assert "val_accuracy" in curve and (run_dir / "loss.png").is_file()
    first = capsys.readouterr().out
    assert "log-probabilities of 19 rows are computed once" in first and "margin" in first
    learn("again")
    assert "computed once" not in capsys.readouterr().out
    assert len(list((place / "pairs").glob("reference-*.train.npy"))) == 1
    values = np.load(next((place / "pairs").glob("reference-*.train.npy")))
    assert values.shape == (38,) and np.isfinite(values).all()


METHODS = {
    "lora": LoRAArgs(lora_dropout=0.0, lora_dora=True, lora_init="pissa"),
    "adapter": AdapterArgs(adapter_start_layer=0),
    "adapter_v2": AdapterArgs(adapter_start_layer=0),
    "full": FullArgs(),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_killed_goes_on_to_the_same_weights_with_every_method(learn, method):
    settings = {"method": method, "method_args": METHODS[method], "train": {"learning_rate": 0.003, "max_steps": 4}}
    run_dir = learn("killed", **settings)
    whole = weights(run_dir)
    start = load_state(next(run_dir.glob("checkpoints/step-000002/lit_model*.pth")), "x")
    assert any(not torch.equal(start[name], x) for name, x in whole.items())
    for path in [*run_dir.glob("checkpoints/step-000004"), *run_dir.glob("lit_model*.pth")]:  # as if it never got there
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    resumed = weights(learn("killed", run=RunArgs(resume=True), **settings))
    assert whole.keys() == resumed.keys() and all(torch.equal(resumed[name], x) for name, x in whole.items())
    with pytest.raises(UserError, match="beta"):
        learn("killed", run=RunArgs(resume=True), preference={"beta": 0.7}, **settings)


def test_the_first_loss_is_that_of_a_model_that_equals_its_reference(learn):
    for name, form in (("q", {"quantize": "int8"}), ("plain", {})):
        lines = (learn(name, **form) / "metrics.csv").read_text().splitlines()
        first = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
        assert float(first["val_loss"]) == pytest.approx(0.693147, abs=1e-5) and abs(float(first["val_margin"])) < 1e-5


def test_a_run_goes_on_from_an_sft_run_that_is_its_reference(learn, checkpoint, capsys):
    first = learn("first", preference={"loss": "orpo"})
    second = learn("second", sft_run=first, method_args=LoRAArgs(lora_r=2, lora_dropout=0.0))
    assert read_run(second).method_args["lora_r"] == read_run(first).method_args["lora_r"] == 8
    start = load_state(second / "checkpoints" / "step-000000" / "lit_model_lora_finetuned.pth", "x")
    assert all(torch.equal(start[name], x) for name, x in weights(first).items())
    out = capsys.readouterr().out
    assert "step 0: val loss 0.6931" in out and "computed once" in out, "a reference of its own"
    assert f"As in --sft_run {first}, whatever the flags say: --lora_r 8\n" in out
    with pytest.raises(UserError, match="is a run of lora"):
        learn("third", sft_run=first, method="full", method_args=FullArgs())
    again = {"sft_run": first, "method_args": LoRAArgs(lora_r=2, lora_dropout=0.0), "run": RunArgs(resume=True)}
    learn("second", **again)
    learn("first", preference={"loss": "simpo"}, run=RunArgs(overwrite=True))
    with pytest.raises(UserError, match=f"the weights of --sft_run {first} are others than before; --allow_changes"):
        learn("second", **again)


def test_dropout_and_lora_plus_are_those_of_the_flags_and_not_of_the_sft_run(learn, capsys):
    first = learn("first", preference={"loss": "orpo"}, method_args=LoRAArgs(lora_dropout=0.5, lora_plus_ratio=16))
    trained = {}
    for ratio in (1.0, 4.0):
        flags = LoRAArgs(lora_dropout=0.0, lora_plus_ratio=ratio)
        run_dir = learn(f"ratio-{ratio}", sft_run=first, method_args=flags, train={"max_norm": 0.0})
        assert read_run(run_dir).method_args["lora_plus_ratio"] == ratio
        trained[ratio] = weights(run_dir)
    assert "whatever the flags say" not in capsys.readouterr().out
    updates = {name: x for name, x in weights(first).items() if "lora_B" in name}
    moved = {r: [(run[name] - x).norm() for name, x in updates.items()] for r, run in trained.items()}
    assert all(fast > 2 * slow for fast, slow in zip(moved[4.0], moved[1.0], strict=True))


@pytest.mark.parametrize("method", ["adapter", "adapter_v2"])
def test_merging_is_refused_before_the_training_where_it_cannot_be(learn, method, tmp_path):
    with pytest.raises(UserError, match=f"--merge true: .* layers of {method}; leave it out"):
        learn("merged", method=method, method_args=METHODS[method], merge=True)
    assert not (tmp_path / "merged").exists()


def test_a_merged_run_is_compared_on_its_own_answers(learn, place, checkpoint):
    texts, what = texts_to_compare(read_run(learn()), checkpoint)
    assert what.endswith(f"samples of {place / 'pairs'}") and len(texts) > 1


def test_the_loss_of_a_run_by_itself_is_not_that_of_preferences(learn, place):
    run_dir = learn()
    with pytest.raises(UserError, match=r"learned from preferences.*--data_dir takes a data set of rows"):
        validated_on(read_run(run_dir), run_dir)
    record = read_run(run_dir)
    sft = {name: x for name, x in record.training.items() if name not in asdict(PreferenceArgs())}
    assert validated_on(replace(record, training=sft), run_dir) == (place / "pairs", "")
    folder, note = validated_on(replace(record, training=sft | asdict(GrpoArgs())), run_dir)
    assert folder == place / "pairs" and "rewards" in note
    with pytest.raises(UserError, match="--data_dir is missing; a pretrained model has no data"):
        validated_on(None, None)


def test_labels_and_pairs_go_with_their_losses(learn, capsys):
    learn("labels", data="labels", preference={"loss": "kto"})
    learn("pairs", data="pairs", preference={"loss": "kto"})
    with pytest.raises(UserError, match="--loss kto takes"):
        learn("dpo", data="labels")


def test_the_plan_has_the_reference_and_what_sharing_prompts_saves(learn, capsys):
    for flags, there in (({}, True), ({"preference": {"loss": "simpo"}}, False)):
        learn("planned", plan=PlanArgs(dry_run=True, device="rtx4090"), **flags)
        out = capsys.readouterr().out
        assert ("reference" in out) is there and "in shared prefixes" in out, out
