"""A new run in a folder of an old one leaves nothing of that, and takes nothing over from it."""

import pytest
import torch
from runs import trained

from lit_gpt.args import TrainArgs
from lit_gpt.errors import UserError
from lit_gpt.training.run.budget import LEDGER, Budget
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.folder import RECORDS, claim_out_dir

LEFT = ("lit_model_lora_finetuned.pth", "merged/lit_model.pth", "averaged/finetuned.json", "checkpoints/step-000003/x")
"""What is left of a run that somebody may want to keep."""


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of the old run")


def test_overwriting_a_run_takes_out_all_that_it_has_left(tmp_path):
    files = [name for name in RECORDS if name not in ("best", "checkpoints")]
    assert {"finetuned.json", "metrics.csv", "loss.png", "report.html", "plan.json", LEDGER} == set(files)
    fill(tmp_path, *LEFT, *files, "notes.txt", "data/mine.json")
    (tmp_path / "best").symlink_to("checkpoints/step-000003", target_is_directory=True)
    claim_out_dir(tmp_path, overwrite=True)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["data", "data/mine.json", "notes.txt"]


@pytest.mark.parametrize("left", LEFT)
def test_each_result_of_another_run_is_kept_unless_it_may_be_replaced(tmp_path, left):
    fill(tmp_path, left, LEDGER)
    with pytest.raises(UserError, match="holds another run; pass --resume true"):
        claim_out_dir(tmp_path, overwrite=False)
    assert (tmp_path / left).is_file() and (tmp_path / LEDGER).is_file()


def test_what_a_run_left_that_never_saved_is_no_run(tmp_path):
    fill(tmp_path, LEDGER, "metrics.csv", "finetuned.json")
    claim_out_dir(tmp_path / "new", overwrite=False)
    claim_out_dir(tmp_path, overwrite=False)
    assert not (tmp_path / LEDGER).exists() and not (tmp_path / "metrics.csv").exists()


def test_a_new_run_is_not_charged_the_time_that_another_one_used_in_its_folder(tmp_path, monkeypatch):
    """Without a limit, and then gone on with under one."""
    out = tmp_path / "out"
    fill(out, "mine.txt")
    (out / LEDGER).write_text("86400.0\n")
    budget = Budget(ledger=out / LEDGER)
    monkeypatch.setattr("runs.Budget", lambda *a: budget)
    _, progress = trained(out, epochs=1)
    assert 0 < progress.seconds < 80000 and float((out / LEDGER).read_text()) < 80000
    again = Budget(TrainArgs(max_time="10:00:00").max_seconds, ledger=out / LEDGER)
    monkeypatch.setattr("runs.Budget", lambda *a: again)
    _, progress = trained(out, resumed=CheckpointStore(out, "lora").newest(), epochs=2, max_time="10:00:00")
    assert progress.step == 12 and again.used < 80000


def test_what_a_killed_run_without_a_limit_used_counts_when_it_goes_on_under_one(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_gpt.training.run.budget.process_seconds", lambda: 300.0)
    Budget(None, ledger=tmp_path / LEDGER).begin_step(torch.device("cpu"))
    again = Budget(1000.0, ledger=tmp_path / LEDGER)
    again.take_up(seconds=150.0, validation_seconds=0.0, save_seconds=0.0, finish_seconds=0.0)
    assert again.used == 600.0
