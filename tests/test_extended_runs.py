"""A run that is given more epochs, steps or another batch size goes on where it was: it misses no sample and sees none
twice."""

import csv
import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY, make_samples

from lit_gpt.args import LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.data.batches import Order
from lit_gpt.data.store import stack
from lit_gpt.errors import UserError
from lit_gpt.layers.dropout import Draws
from lit_gpt.lightning import Fabric
from lit_gpt.methods import lora
from lit_gpt.model import GPT
from lit_gpt.training.length import length_of
from lit_gpt.training.loader import BatchLoader
from lit_gpt.training.loop import fit
from lit_gpt.training.optimizer import learning_rate
from lit_gpt.training.run.budget import Budget
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.monitor import Monitor
from lit_gpt.training.run.progress import RECORD, read_progress, record_digest
from lit_gpt.training.run.session import Session


def numbered(n):
    """Samples that each begin with a token of their own."""
    return stack([([i + 1, 62, 63], [i + 1, 62, 63]) for i in range(n)])


def numbers_in(ids):
    """Numbers of the samples in a micro-batch."""
    return [i - 1 for i in ids.flatten().tolist() if i < 62]


def trained(out, n, **train):
    """(numbers of the samples that the model was trained on, in order; the learning rate of each step; progress) of a
    run that goes on from the newest checkpoint in `out`, if there is one."""
    out.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = GPT(TINY)
    lora.inject(model, LoRAArgs(lora_dropout=0.0))
    data, seen, checkpoint_store = numbered(n), [], CheckpointStore(out, "lora")
    model.transformer.wte.register_forward_pre_hook(
        lambda _, x: seen.append(numbers_in(x[0])) if model.training else None
    )
    args = TrainArgs(**{"learning_rate": 1e-2, "micro_batch_tokens": 12, "save_interval": 3, "compile": False} | train)
    resumed = checkpoint_store.newest()
    monitor = Monitor(out, args.n_samples(n), 1, goes_on=resumed is not None)
    fabric = Fabric(accelerator="cpu", devices=1)
    session = Session(checkpoint_store, monitor, Budget(args.max_seconds), resumed)
    progress = fit(fabric, model, data, make_samples(3, 1), session, args, ValidationArgs(), 7)
    monitor.close()
    with open(out / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    rates = {int(row["step"]): float(row["learning_rate"]) for row in rows}
    return [i for rows in seen[1:] for i in rows], rates, progress  # the first one is the rehearsal's


@pytest.mark.parametrize(
    "n, legs",
    [
        (20, [{"epochs": 1, "batch_size": 8}, {"epochs": 2, "batch_size": 8}]),  # a last step of 4
        (20, [{"epochs": 1, "batch_size": 128}, {"epochs": 2, "batch_size": 128}]),  # one step an epoch
        (10, [{"epochs": 0.5, "batch_size": 4}, {"epochs": 1.5, "batch_size": 4}, {"epochs": 3, "batch_size": 4}]),
        (7, [{"epochs": 1, "batch_size": 3}, {"epochs": 2, "batch_size": 2}]),  # and another batch size
        (9, [{"epochs": 1, "batch_size": 4}, {"max_iters": 9, "micro_batch_size": 3, "batch_size": 4}]),
    ],
)
def test_each_epoch_sees_each_sample_once_whatever_it_took_to_get_there(tmp_path, n, legs):
    seen = []
    for train in legs:
        more, rates, progress = trained(tmp_path / "out", n, **train)
        seen += more
    total = length_of(TrainArgs(**legs[-1]), n).n_samples
    assert len(seen) == total == progress.samples and progress.step == max(rates)
    for start in range(0, total, n):
        counts = Counter(seen[start : start + n])
        assert max(counts.values()) == 1 and (start + n > total or len(counts) == n)


def test_more_steps_are_steps_more(tmp_path):
    """--max_steps counts steps, also where an earlier one had fewer samples than the others."""
    first, _, progress = trained(tmp_path / "out", 10, epochs=1, batch_size=4)
    assert (progress.step, progress.samples) == (3, 10)
    more, _, progress = trained(tmp_path / "out", 10, max_steps=5, batch_size=4)
    assert (progress.step, progress.samples, len(more)) == (5, 18, 8)
    assert sorted(first) == [*range(10)] and len(set(more)) == 8
    again, _, after = trained(tmp_path / "out", 10, max_steps=4, batch_size=4)  # is passed already
    assert not again and after.step == 5


def test_the_learning_rate_goes_on_as_in_a_run_of_the_new_length(tmp_path, capsys):
    _, rates, _ = trained(tmp_path / "out", 20, epochs=1, batch_size=8)
    args = TrainArgs(learning_rate=1e-2)
    assert rates == {s: pytest.approx(learning_rate(s, 3, args), rel=1e-3) for s in (1, 2, 3)}
    capsys.readouterr()
    _, rates, _ = trained(tmp_path / "out", 20, epochs=2, batch_size=8)
    assert rates == {s: pytest.approx(learning_rate(s, 3 if s <= 3 else 6, args), rel=1e-3) for s in range(1, 7)}
    said = "Going on after step 3: 3 of 6 optimizer steps are left, then --epochs ends the run; the learning rate goes"
    assert said in capsys.readouterr().out


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.sampled_from(["epochs", "max_steps", "max_iters"]), st.integers(1, 12), st.integers(1, 60)),
             min_size=1, max_size=4),
)  # fmt: skip
def test_the_samples_of_a_run_in_parts_are_those_of_one_in_their_order(n, legs):
    data, seen, step = numbered(n), [], 0
    weights = SimpleNamespace(wte=torch.nn.Embedding(1, 1))
    model = SimpleNamespace(hidden=None, draws=Draws(), transformer=weights)
    for name, limit, batch_size in legs:
        train = TrainArgs(**{name: limit / 4 if name == "epochs" else limit}, batch_size=batch_size)
        loader = BatchLoader(model, data, train, torch.device("cpu"), 3, None)
        loader.begin_at(step, len(seen))
        while step < loader.n_steps:
            step += 1
            rows = loader.rows(step)
            assert sorted(rows) == sorted(i for batch in loader.batches(step) for i in numbers_in(batch.ids))
            assert 0 < len(rows) <= batch_size and loader.length.seen_after(step) == len(seen) + len(rows)
            seen += rows
        assert len(seen) >= train.limits(n, step, len(seen))[name]
    assert seen == Order(n, len(seen), 3).rows(0, len(seen))


def test_a_checkpoint_that_does_not_say_its_place_in_the_data_is_taken_up_all_the_same(tmp_path):
    """As those of before that was kept: the monitor's count is the place."""
    first, *_ = trained(tmp_path / "out", 20, epochs=1, batch_size=8)
    place = CheckpointStore(tmp_path / "out", "lora").newest()
    rewrite(place, lambda record: [record.pop(name) for name in ("samples", "step_seconds")])
    assert read_progress(place).samples == 20
    more, _, _ = trained(tmp_path / "out", 20, epochs=2, batch_size=8)
    assert sorted(first) == sorted(more) == [*range(20)]


def test_a_checkpoint_of_a_version_that_says_more_is_not_called_damaged(tmp_path):
    trained(tmp_path / "out", 20, epochs=1, batch_size=8)
    checkpoint_store = CheckpointStore(tmp_path / "out", "lora")
    for step in checkpoint_store.steps():
        rewrite(checkpoint_store.folder_of(step), lambda record: record.update(n_workers=2))
    with pytest.raises(UserError, match="was written by another version of lit-gpt and says n_workers, which") as e:
        checkpoint_store.newest()
    assert "damaged" not in str(e.value)


def rewrite(place, change):
    """Change what a checkpoint says of itself."""
    record = json.loads((place / RECORD).read_text())
    del record["digest"]
    change(record)
    (place / RECORD).write_text(json.dumps(record | {"digest": record_digest(record)}))
