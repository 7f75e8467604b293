"""What a run will take is said before it starts: memory, work, time, and what would make it fit; nothing is written."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_one_line_error
from jobs import ARGS, DATA, MIDDLE, job_of, real_model, samples_of
from script_processes import run
from tiny import kept_by

from lit_gpt import finetuning
from lit_gpt.args import LoRAArgs, PlanArgs, TrainArgs, ValidationArgs
from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.data import store
from lit_gpt.data.batches import Order, collate, steps
from lit_gpt.data.packing import Packing, fullest
from lit_gpt.data.store import IGNORE, Samples, stack
from lit_gpt.errors import UserError
from lit_gpt.families import config_for
from lit_gpt.layers import compiled
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.quantize import QUANTIZATIONS, quantized
from lit_gpt.lightning import Fabric
from lit_gpt.planning import fit as fitting
from lit_gpt.planning.devices import DEVICES, GIB, named, this_machine
from lit_gpt.planning.dry_run import dry_run
from lit_gpt.planning.job import Job, config_of
from lit_gpt.planning.memory_items import base_bytes, memory_items
from lit_gpt.planning.outcome import settle
from lit_gpt.planning.plan import make_plan
from lit_gpt.planning.probe import STEPS, chosen, size
from lit_gpt.planning.seconds import Rates
from lit_gpt.planning.work import work_of
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.training.flops import training_flops
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.memory import block_bytes
from lit_gpt.training.optimizer import make_optimizer
from lit_gpt.training.run.gauges import Gauges
from lit_gpt.training.run.loggers import figures, make_logger, require_logger

ALL = LoRAArgs(lora_r=16, lora_key=True, lora_projection=True, lora_mlp=True)


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("shape", [(96, 160), (72, 72)])
def test_weights_in_few_bits_take_to_the_byte_what_the_plan_says(kind, shape):
    if kind.startswith("bnb."):
        pytest.importorskip("bitsandbytes")
    linear = Linear(*shape, bias=False)
    layer = quantized(linear, kind)
    held = [layer.weight, *layer.buffers()]
    state = getattr(layer, "state", None)
    if state is not None:
        held += [state.absmax, state.code]
        if state.nested:
            held += [state.offset, state.state2.absmax, state.state2.code]
    assert QUANTIZATIONS[kind].n_bytes(linear) == sum(x.nbytes for x in held)


@pytest.mark.parametrize("method", ARGS)
def test_weights_gradients_and_optimizer_take_to_the_byte_what_the_plan_says(method):
    job = job_of(method)
    items = make_plan(job, DATA).memory
    model = real_model(job)
    optimizer = make_optimizer(model, job.train)
    (batch, *_) = next(steps(DATA[0], Order(60, 60, 0), 8, Packing(256)))
    loss_sum(model, batch).backward()
    optimizer.step()
    trains = [p for p in model.parameters() if p.requires_grad]
    assert items["trained weights"] == items["gradients"] == sum(p.nbytes for p in trains)
    assert all(p.grad is not None for p in trains)
    state = [x for s in optimizer.state.values() for name, x in s.items() if name != "step"]
    assert items["optimizer"] == sum(x.nbytes for x in state)
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad) + sum(b.nbytes for b in model.buffers())
    assert items["frozen weights"] == frozen


@pytest.mark.parametrize("method", ARGS)
@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("parallel", [False, True])
def test_the_activations_are_what_hooks_on_saved_tensors_count(method, recompute, parallel):
    config = replace(MIDDLE, parallel_residual=parallel, n_embd=256, head_size=64, intermediate_size=640)
    job = job_of(method, config, recompute=recompute, micro_batch_tokens=400)
    work = work_of(*DATA, job.train, job.validation, job.packing, 0)
    model, _ = job.model()
    n = config.n_layer if recompute == "all" else 0
    planned = memory_items(job, model, {}, work, n)["activations"]
    real = real_model(job)
    real.n_recomputed = n
    batches = [b for step in steps(DATA[0], Order(60, 60, 0), 8, Packing(400)) for b in step]
    batches.append(
        collate([DATA[0][i] for i in fullest(DATA[0].computed, 400, job.train.batch_size)])
    )  # which a run tries first
    largest = max(batches, key=lambda b: b.n_computed)
    assert largest.n_computed == work.largest
    measured = 4 * kept_by(real, largest)
    if n:  # while a block is computed again it is there in full
        measured += block_bytes(model, work.largest, 4)[0]
    # the plan does not know that the lowest parallel block with a prompt keeps nothing of its MLP
    assert measured == pytest.approx(planned, rel=0.2 if method == "adapter" else 0.06)


@pytest.mark.parametrize("kind", ["bnb.nf4", "int8"])
def test_a_quantized_model_keeps_its_head_and_embeddings(kind):
    job = job_of(quantize=kind, precision="bf16-true")
    model, chosen = job.model()
    linear = sum(layer.in_features * layer.out_features for layer in chosen.values())
    rest = 2 * 300 * 64 + 9 * 64
    least, most = (0.5, 0.6) if kind == "bnb.nf4" else (1.0, 1.1)
    extra = sum(b.nbytes for b in model.buffers())
    assert least * linear + 2 * rest <= base_bytes(model, chosen, kind) - extra <= most * linear + 2 * rest


def test_the_work_is_what_the_loop_will_do():
    train, validation = TrainArgs(batch_size=7, epochs=1.5, save_interval=3), ValidationArgs(eval_interval=4)
    work = work_of(*DATA, train, validation, Packing(150), 3)
    done = [b for step in steps(DATA[0], Order(60, 90, 3), 7, Packing(150)) for b in step]
    assert (work.n_samples, work.n_steps, work.n_passes) == (90, 13, len(done))
    assert (work.n_tokens, work.n_targets) == (sum(b.n_tokens for b in done), sum(b.n_targets for b in done))
    assert work.squares == sum(n * n for b in done for n in b.documents.lengths)
    assert work.largest >= max(b.n_computed for b in done) and work.largest <= 150
    assert work.n_val_tokens == len(DATA[1].ids) and work.n_validations == 5 and work.n_saves == 8
    assert work.n_padded > work.n_tokens


def test_the_work_counts_a_shared_prefix_once():
    ids = [*range(30), 7, 8, 9]
    data = stack([(ids, [IGNORE] * 31 + ids[31:])] * 12)
    packing, validation = Packing(256, 64), ValidationArgs()
    work = work_of(data, data, TrainArgs(batch_size=4, epochs=1), validation, packing, 3)
    done = [b for step in steps(data, Order(12, 12, 3), 4, packing) for b in step]
    assert (work.n_tokens, work.n_computed, work.n_passes) == (12 * 33, 3 * (30 + 4 * 2), 3)
    assert work.n_computed == sum(b.n_computed for b in done)
    assert work.largest == 4 * 32  # the pass that a run tries first shares nothing
    assert work.squares == pytest.approx(sum(size(b)[2] for b in done))
    assert (work.n_val_tokens, work.n_val_computed) == (work.n_tokens, work.n_computed)
    assert work.val_squares == pytest.approx(work.squares)


def test_operations_over_documents_are_those_over_equal_ones():
    model = real_model(job_of())
    one = training_flops(model, 100, 100, 100 * 100)
    assert training_flops(model, 200, 200, 2 * 100 * 100) == 2 * one
    assert training_flops(model, 100, 50, 100 * 100) < one < training_flops(model, 100, 100, 100 * 100, n_recomputed=2)


def test_devices_go_by_name():
    assert named("A100-40GB").n_bytes == int(39.35 * GIB) and named("a100") is named("a100-40gb")
    assert 23.5 < named("24gb").gib < 24 and named("24gb").rate == 0
    assert named("rtx_4090").fp8 and not named("t4").bf16
    with pytest.raises(UserError, match="--device 'rtx4900' is no device we know; close matches: rtx4090"):
        named("rtx4900")
    with pytest.raises(UserError, match="known are a100-40gb"):
        named("abacus")
    assert all(d.gib > 5 and d.sheet_tflops > 15 for d in DEVICES.values())
    machine = this_machine(torch.device("cpu"))
    assert machine.kind == "cpu" and machine.gib > 0.5


LEAN = {"micro_batch_tokens": 2048, "recompute": "all"}


def seven_b(n_docs, length, **train):
    ids = np.arange(n_docs * length) % 30000 + 3
    data = Samples(ids, ids, np.arange(n_docs + 1) * length)
    return (data, data), {"batch_size": n_docs, "max_steps": 1, "recompute": "none", **train}


@pytest.mark.parametrize(
    "key, args, quantize, train, tolerance",
    [
        ("bf16.qv.full.1", LoRAArgs(), None, {}, 0.05),
        ("bf16.qv.full.2", LoRAArgs(), None, {"micro_batch_tokens": 8192}, 0.05),
        ("bf16.all.full.1", ALL, None, {}, 0.05),
        ("fp8.qv.full.1", LoRAArgs(), "fp8", {}, 0.05),
        ("int8.qv.full.1", LoRAArgs(), "int8", {}, 0.05),
        ("bnb.nf4.qv.full.1", LoRAArgs(), "bnb.nf4", {}, 0.05),
        ("bnb.nf4_called.qv.full.0.5.lean", LoRAArgs(), "bnb.nf4", LEAN, 0.12),
    ],
)  # fmt: skip
def test_for_an_h100_the_plan_is_near_what_was_measured_there(key, args, quantize, train, tolerance):
    text = (ROOT / "benchmarks/results/gpu.txt").read_text()
    measured = json.loads(re.search(r"^figures (\{.*)$", text, re.M)[1])
    data, train = seven_b(8, 2048, **train)
    config = config_for("Llama-2-7b-hf")
    job = Job("lora", args, config, TrainArgs(**train), ValidationArgs(), "bf16-true", quantize, named("h100-80gb"))
    plan = make_plan(job, data)
    assert plan.peak / 1e9 == pytest.approx(measured[f"{key}.reserved_gb"], rel=tolerance)
    rate = plan.work.n_tokens / plan.times.training
    assert rate == pytest.approx(measured[f"{key}.tokens_per_sec"], rel=0.1)


@pytest.mark.parametrize("method", ["lora", "adapter_v2", "full"])
@pytest.mark.parametrize("name", ["t4", "rtx3090", "rtx4090", "a100-40gb", "h100-80gb"])
def test_what_fit_chooses_fits(name, method):
    """7B: LoRA everywhere; full finetuning where there is room for it, or an error that says how much it takes."""
    data, train = seven_b(8, 1024, recompute="auto")
    precision = "bf16-true" if named(name).bf16 else "16-true"
    precision = precision if method != "full" else precision.replace("true", "mixed")
    args = ARGS[method]
    config = config_for("Llama-2-7b-hf")
    job = Job(method, args, config, TrainArgs(**train), ValidationArgs(), precision, None, named(name))
    try:
        plan = fitting.fitted(make_plan(job, data), data)
    except UserError as e:
        assert method == "full" and "by any of our ways" in str(e) and name != "h100-80gb"
        return
    assert plan.fits and plan.needed <= named(name).n_bytes
    if name == "h100-80gb" and method != "full":
        assert plan.job == job  # nothing is changed without need
    if name == "a100-40gb" and method == "lora":
        assert plan.job.quantize is None
    if name == "t4":
        assert plan.job.quantize is not None


def test_fit_writes_fewer_answers_at_once_before_it_takes_other_weights():
    """7B on a GPU of 40 GB: 64 answers at once of up to 1,536 tokens take more than the weights do."""
    data, train = seven_b(8, 1024, recompute="auto")
    grpo = GrpoArgs(max_new_tokens=512)
    job = Job(
        "lora", ARGS["lora"], config_for("Llama-2-7b-hf"), TrainArgs(**train), ValidationArgs(), "bf16-true", None,
        named("a100-40gb"), grpo=grpo,
    )  # fmt: skip
    plan = make_plan(job, data)
    assert not plan.fits and make_plan(replace(job, grpo=None), data).fits
    chosen_job = fitting.fitted(plan, data).job
    assert chosen_job.quantize is None and 4 <= chosen_job.grpo.rollout_rows < 64
    rows = chosen_job.grpo.rollout_rows
    twice = replace(chosen_job, grpo=replace(grpo, rollout_rows=2 * rows))
    assert not make_plan(twice, data).fits, "no fewer than needed"
    assert f"--rollout_rows {rows}" in fitting.flags_of(job, chosen_job)
    assert any("  --rollout_rows 32: " in line for line in fitting.ways_out(plan, data))


def test_fit_uses_the_time_and_no_more():
    rates = Rates(1e8, 3e8, 0.01, 5.0, 0.1, 0.0, "a test")
    job = job_of(max_time="00:02:00", epochs=None, max_iters=None)
    plan = fitting.fitted(make_plan(job, DATA, rates), DATA)
    assert 60 < plan.seconds <= 120 and plan.job.train.epochs <= fitting.MOST_EPOCHS
    longer = fitting.fitted(make_plan(job_of(max_time="10:00:00", epochs=None), DATA, rates), DATA)
    assert longer.job.train.epochs == fitting.MOST_EPOCHS  # not more than makes sense
    args = fitting.fitted(make_plan(job_of(max_time="10:00:00", epochs=1), DATA, rates), DATA)
    assert args.job.train.epochs == 1  # nor than was asked for
    with pytest.raises(UserError, match="--max_time 0:00:05 is too little"):
        fitting.fitted(make_plan(job_of(max_time="00:00:05"), DATA, rates), DATA)


def test_a_plan_says_how_many_steps_the_time_has_room_for():
    rates = Rates(1e8, 3e8, 0.01, 5.0, 0.1, 0.0, "a test")
    whole = make_plan(job_of(epochs=30, batch_size=2), DATA, rates)
    assert (whole.length.n_steps, whole.length.ended_by) == (900, "epochs")
    limited = replace(whole, job=job_of(epochs=30, batch_size=2, max_time="00:01:00"))
    n_steps = limited.length.n_steps
    assert 1 < n_steps < 900 and limited.length.ended_by == "max_time"
    for n, ends_in_time in ((n_steps, True), (n_steps + 4, False)):
        plan = make_plan(job_of(epochs=None, max_steps=n, batch_size=2), DATA, rates)
        assert (plan.seconds <= 60) == ends_in_time


def test_the_command_line_is_what_was_typed_with_what_was_chosen():
    args = job_of(epochs=None, max_iters=500)
    plan = SimpleNamespace(
        job=replace(args, quantize="int8", train=replace(args.train, epochs=1.5, max_iters=None, recompute="all"))
    )
    argv = "finetune/lora.py --checkpoint_dir c --max_iters 500 --dry_run true --fit=true --quantize bnb.nf4 --lora_r 4"
    assert fitting.command_line(plan, args, argv.split()) == (
        "python finetune/lora.py --checkpoint_dir c --lora_r 4 --quantize int8 --recompute all --epochs 1.5"
    )


@pytest.fixture
def prepared(checkpoint, tmp_path):
    """A checkpoint and data that go together."""
    data = tmp_path / "data"
    meta = {
        "tokenizer": Tokenizer(checkpoint).fingerprint(),
        "checkpoint_dir": str(checkpoint),
        "prompt_style": "plain",
    }
    splits = {"train": samples_of(12, vocab=260), "val": samples_of(4, seed=1, vocab=260)}
    store.save(data, splits, meta | {"samples": {name: len(s) for name, s in splits.items()}})
    return checkpoint, data


@pytest.mark.parametrize("batch_size", [3, 8, 40])
def test_the_passes_of_a_probe_are_those_of_steps_the_largest_first(batch_size):
    found = chosen(DATA[0], batch_size, Packing(256), torch.device("cpu"))
    sizes = [batch.n_computed for batch in found]
    assert sizes[0] == max(sizes) and sizes[1:] != sorted(sizes[1:], reverse=True)
    assert max(batch.n_samples for batch in found) <= batch_size
    assert sum(batch.n_samples for batch in found) == min(60, STEPS * batch_size)


def test_a_sample_that_is_longer_than_a_pass_is_planned_and_no_pass_is_more_than_full():
    long = stack([(list(range(1, 5001)), [IGNORE] * 2500 + list(range(2501, 5001)))] * 2)
    work = make_plan(job_of(micro_batch_tokens=256), (long, DATA[1])).work
    assert (
        work.n_passes == 2 and work.largest == 4999 and "%" not in work.filled and "longer than a pass" in work.filled
    )
    assert "% full" in make_plan(job_of(micro_batch_tokens=256), DATA).work.filled


def test_the_size_of_a_pass_counts_a_shared_prefix_once():
    ids = [*range(30), 7, 8, 9]
    data = stack([(ids, [IGNORE] * 31 + ids[31:])] * 3 + [(ids[9:19], ids[9:19])])
    (batch,) = chosen(data, 4, Packing(64, 64), torch.device("cpu"))
    assert batch.documents.lengths == (30, 2, 2, 2, 9)
    assert size(batch) == (45, 3 * 2 + 9, 30**2 + 3 * (32**2 - 30**2) + 9**2)


def listing(folder):
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_a_dry_run_with_a_probe_says_all_and_writes_nothing(prepared, tmp_path, capsys):
    checkpoint, data = prepared
    before = listing(tmp_path), listing(checkpoint)
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    train = TrainArgs(batch_size=4, epochs=1, micro_batch_tokens=200)
    dry_run(
        fabric, FinetuneArgs("lora", LoRAArgs(lora_r=2), checkpoint, data, tmp_path / "out", train, ValidationArgs())
    )
    text = capsys.readouterr().out
    for part in (
        "frozen weights",
        "activations",
        "logits",
        "fits",
        "12 samples = 1.00 epochs in 3 steps",
        "3 optimizer steps: too few to learn much; raise --epochs, which ends the run",
        "it ends at",
    ):
        assert part in text
    assert re.search(r"from \d+ forward and backward passes on this machine", text)
    assert (listing(tmp_path), listing(checkpoint)) == before


@pytest.mark.parametrize("dry", [True, False])
def test_a_run_compiles_as_asked_and_leaves_the_process_as_it_was(dry, prepared, tmp_path, monkeypatch):
    checkpoint, data = prepared
    seen = []
    monkeypatch.setattr(finetuning, "load_model", lambda *_, **__: seen.append(compiled._settings["compile"]) or 1 / 0)
    monkeypatch.setattr(finetuning, "dry_run", lambda *_: seen.append(compiled._settings["compile"]) or 1 / 0)
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    for compile in (True, False):
        train = TrainArgs(batch_size=4, epochs=1, micro_batch_tokens=200, compile=compile)
        where = ("lora", LoRAArgs(lora_r=2), checkpoint, data, tmp_path / "out")
        with pytest.raises(ZeroDivisionError):
            finetuning.finetune(fabric, FinetuneArgs(*where, train, ValidationArgs(), plan=PlanArgs(dry_run=dry)))
        assert compiled._settings["compile"] is False
    assert seen == [True, False]


def test_the_memory_of_a_plan_is_the_same_when_the_process_holds_a_model():
    """As it does when --fit plans again after a probe."""
    before = make_plan(job_of(), DATA).memory
    held = torch.ones(50_000_000)
    assert make_plan(job_of(), DATA).memory == before and held[-1] == 1


def test_plan_takes_the_flags_of_the_finetune_scripts_and_needs_no_weights(prepared, tmp_path):
    _, data = prepared
    where = ("--checkpoint_dir", "checkpoints/meta-llama/Llama-2-7b-hf", "--data_dir", data)
    before = listing(tmp_path)
    p = run("scripts/plan.py", "--method", "adapter", *where, "--device", "a100-40gb", "--epochs", 1, cwd=tmp_path)
    assert p.returncode == 0, p.stderr
    assert "of 42.25: fits" in p.stdout and "from the table of devices" in p.stdout and "it ends at" in p.stdout
    p = run("scripts/plan.py", *where, "--adapter_start_layer", 1, cwd=tmp_path)
    assert_one_line_error(p, "--adapter_start_layer")  # is not a flag of LoRA
    assert listing(tmp_path) == before
    assert config_of(tmp_path / "open_llama_7b").n_layer == 32
    assert config_of(tmp_path / "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T").n_layer == 22  # not our name
    with pytest.raises(UserError, match="there is no model to plan with of that name"):
        config_of(tmp_path / "nobodys-model")
    with pytest.raises(UserError, match="--fit is for planning; add --dry_run true"):
        PlanArgs(fit=True)


def test_the_error_of_the_plan_is_printed_and_kept(tmp_path, capsys):
    plan = make_plan(job_of(), DATA, Rates(1e9, 1e9, 0.0, 5.0, 0.0, 0.0, "a test"))
    gauges = Gauges(torch.device("cpu"), 60)
    gauges.begun = (0, 0.0)  # it took a step
    settle(plan, gauges, tmp_path)
    kept = json.loads((tmp_path / "plan.json").read_text())
    memory, time = kept["outcome"]
    assert memory["planned"] == plan.peak / 1e9 and time["planned"] == plan.times.trained
    assert memory["error"] == pytest.approx(memory["planned"] / memory["actual"] - 1)
    assert sum(kept["memory"].values()) == plan.needed
    assert capsys.readouterr().out.count("Plan: ") == 2


def test_gauges_tell_the_end_and_the_share_of_the_peak(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("lit_gpt.training.run.gauges.process_seconds", lambda: now[0])
    gauges = Gauges(torch.device("cpu"), 100, 2e6, 1e9, n_validations=3, time_left=lambda: 3600.0)
    gauges.validations.add(6.0)
    now[0] += 6
    for step in range(1, 5):
        now[0] += 2 if step > 1 else 9  # the first one warms up
        gauges.iterated(step, 10 * step, True, 10, 2.0)
    # after step 3: 70 samples at 0.2 s and two validations of 6 s
    assert gauges.forecast.step == 3 and gauges.forecast.seconds == pytest.approx(119 + 14 + 12)
    assert gauges.of_peak(100) == pytest.approx(0.2) and Gauges(torch.device("cpu"), 1).of_peak(5) is None
    line = gauges.line(4, 40, 100.0)
    assert line.startswith("100 tok/s, 20% of peak, ") and "0:00:24 left, deadline in 1:00:00" in line
    assert gauges.line(4, 40, 100.0, short=True).startswith("0:00:24 left, deadline in 1:00:00, 100 tok/s, ")


@pytest.mark.smoke
def test_loggers_are_fabrics_and_a_missing_one_is_one_line(tmp_path, monkeypatch):
    row = {"loss": "0.5", "val_loss": "", "learning_rate": "0.001", "step": 3}
    assert figures(row) == {"loss": 0.5, "learning_rate": 0.001}
    assert make_logger("csv", tmp_path) is None
    monkeypatch.setattr("lit_gpt.training.run.loggers.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--logger wandb needs the package wandb; run: pip install -e"):
        require_logger("wandb")
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    logger = make_logger("tensorboard", tmp_path)
    logger.log_metrics(figures(row), 3)
    logger.finalize("success")
    assert list((tmp_path / "tensorboard").glob("events.*"))
