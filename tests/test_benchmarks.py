"""What stands in for a part of ours in the benchmarks still fits it, on a tiny model."""

import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from tiny import TINY, make_samples

from lit_gpt.args import FullArgs
from lit_gpt.fabric import make_fabric
from lit_gpt.methods import full
from lit_gpt.model import GPT

sys.path.append(str(ROOT / "benchmarks"))
import digests
from gpu_parts import engine
from gpu_parts.context import Context
from preferences_parts import ours as our_preferences
from preferences_parts.pairs import STEP, Pairs
from preferences_parts.tally import heard
from train_parts import ours_run


def rows_of(samples):
    return [(samples.ids[a:b], samples.labels[a:b]) for a, b in zip(samples.offsets, samples.offsets[1:], strict=False)]


def test_training_counts_every_sample_and_token():
    samples = make_samples(24)
    job = SimpleNamespace(
        material=SimpleNamespace(rows=rows_of(samples)), n_rows=None, repeats=1, max_seq_length=64, learning_rate=1e-4,
        batch_size=8, micro_batch_size=4, targets="full", seed=1,
    )  # fmt: skip
    fabric, model = make_fabric("32-true", seed=1), GPT(TINY)
    full.inject(model, FullArgs())

    record = ours_run.fitted(fabric, model, job, share_prefixes=True)

    figures = record.figures(warmup=8)
    assert sum(p.n_samples for p in record.passes) == 24
    assert figures.n_tokens == len(samples.ids)
    assert figures.mean_loss == pytest.approx(4.16, abs=0.5)  # ln 64


def test_preferences_tell_the_figures_of_all_steps_but_the_first(tmp_path, checkpoint, monkeypatch, capsys):
    pairs = [{"prompt": f"{i}:", "chosen": "yes, so it is", "rejected": "no"} for i in range(2 * STEP)]
    material = Pairs(tmp_path, orders=1, n=len(pairs), trl_batch=4)
    material.path.write_text(json.dumps(pairs), encoding="utf-8")
    monkeypatch.setattr(Pairs, "model", property(lambda self: SimpleNamespace(ours=checkpoint)))

    our_preferences.run(material)

    figures = heard(capsys.readouterr().out)
    assert figures.first_loss == pytest.approx(0.6931, abs=1e-3)  # ln 2: the model is its own reference
    assert figures.per_sec > 0 and figures.reference_seconds > 0


def test_the_engine_of_the_gpu_s_table_answers_every_request_in_full(monkeypatch, capsys):
    monkeypatch.setattr(engine, "_KINDS", ("bf16",))
    context = Context(torch.device("cpu"), tiny=True, ends=time.monotonic() + 60)

    engine.run(context)

    assert context.figures.keys() == {"engine.bf16.rows.tokens_per_sec", "engine.bf16.guessed.tokens_per_sec"}
    assert "FAILED" not in capsys.readouterr().out


def test_loading_is_measured_with_the_sums_and_without(checkpoint, monkeypatch, capsys):
    flags = ["--checkpoint_dir", str(checkpoint), "--rounds", "1", "--from_disk"]
    monkeypatch.setattr(sys, "argv", ["digests.py", *flags])

    digests.main()

    shown = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:5]]
    assert shown == [["processor", "with"], ["processor", "without"], ["clock", "with"], ["clock", "without"]]
