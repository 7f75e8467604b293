"""A run that is killed, stopped or damaged goes on to be the run it would have been, bit for bit."""

import csv
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_one_line_error, tiny_hf, write_tokenizer
from script_processes import run, start

from lit_gpt.training.run.budget import LEDGER
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.progress import read_progress

ROWS = [{"instruction": f"say {w} {n} times", "input": "", "output": " ".join([w] * n)}
        for w in ("ab", "cd", "the", "king") for n in range(1, 9)]  # fmt: skip
FLAGS = ["--checkpoint_dir", "checkpoint", "--data_dir", "data", "--batch_size", "6", "--micro_batch_tokens", "48"]
FLAGS += ["--epochs", "3", "--learning_rate", "0.01", "--save_interval", "2", "--eval_interval", "5"]
SETTINGS = {
    "lora": ["--precision", "32-true", "--lora_dropout", "0.2"],
    "lora-bf16": ["--precision", "bf16-true", "--lora_dropout", "0.2"],
    "lora-nf4": ["--precision", "32-true", "--quantize", "bnb.nf4"],
    "lora-pissa": ["--precision", "32-true", "--lora_init", "pissa", "--lora_dora", "true"],
    "adapter": ["--precision", "32-true", "--adapter_start_layer", "0"],
    "adapter_v2": ["--precision", "bf16-mixed", "--adapter_start_layer", "0"],
    "full": ["--precision", "32-true"],
    "full-8bit": ["--precision", "bf16-true", "--optimizer", "adamw8bit"],
}
TWO_THREADS = "lora-bf16"
"""The setting whose runs have two threads, however many the tests themselves have."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint and prepared data."""
    place = tmp_path_factory.mktemp("resume")
    tiny_hf("llama-gqa", hidden_size=64, intermediate_size=96).save_pretrained(place / "checkpoint")
    write_tokenizer(place / "checkpoint")
    (place / "rows.json").write_text(json.dumps(ROWS))
    for script, *flags in (
        ("convert_hf_checkpoint.py",),
        ("prepare_alpaca.py", "--data_file", "rows.json", "--destination_path", "data", "--prompt_style", "plain"),
    ):
        p = run(f"scripts/{script}", "--checkpoint_dir", "checkpoint", *flags, cwd=place)
        assert p.returncode == 0, p.stderr
    return place


def command(setting, out, *flags):
    method = setting.partition("-")[0]
    return [f"finetune/{method}.py", *FLAGS, *SETTINGS[setting], "--out_dir", out, *flags]


def weights(place, out):
    (path,) = (place / out).glob("lit_model*_finetuned.pth")
    return torch.load(path, weights_only=True)


def losses(place, out):
    """Without the columns that time."""
    lines = [line.split(",") for line in (place / out / "metrics.csv").read_text().splitlines()]
    timed = [lines[0].index(name) for name in ("seconds", "tokens_per_sec", "iter_time_ms", "of_peak", "memory_gb")]
    return [[x for i, x in enumerate(line) if i not in timed] for line in lines]


def assert_same(place, one, other):
    a, b = weights(place, one), weights(place, other)
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    assert losses(place, one) == losses(place, other)


@pytest.fixture(scope="module")
def whole(place):
    """The folder of the uninterrupted run of a setting, in a process that hashes names otherwise than others do."""

    @cache
    def get(setting):
        out = f"whole-{setting}"
        process = start(*command(setting, out), cwd=place, anew=True)
        said, _ = process.communicate()
        assert process.returncode == 0, said
        return out

    return get


def leftovers(folder):
    return [p for p in folder.rglob(".*") if p.name.endswith(".tmp")]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(place, whole, setting, monkeypatch):
    """SIGKILL three times a setting: while it saves, and at random moments of the training."""
    if setting == TWO_THREADS:
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    reference = whole(setting)
    out, moments = f"killed-{setting}", random.Random(setting)
    n_killed = 0
    while n_killed < 3:
        process = start(*command(setting, out, "--resume", "true"), cwd=place)
        if n_killed == 1:  # in the middle of a save: as soon as the temporary folder is there
            pattern = ".step-*.tmp"
            while process.poll() is None and not list((place / out / "checkpoints").glob(pattern)):
                pass
        else:
            for line in process.stdout:
                if line.startswith("iter ") and " step 0" not in line:
                    break
            time.sleep(moments.uniform(0, 0.5))
        alive = process.poll() is None
        process.kill()
        process.communicate()
        n_killed += 1
        if not alive:
            shutil.rmtree(place / out)
    p = run(*command(setting, out, "--resume", "true"), cwd=place)
    assert p.returncode == 0, p.stderr
    assert_same(place, reference, out)
    assert not leftovers(place / out)
    assert json.loads((place / out / "best" / "state.json").read_text())["best_step"] is not None


@pytest.mark.parametrize("how", [pytest.param(signal.SIGTERM, marks=pytest.mark.smoke), signal.SIGINT])
def test_a_signal_saves_and_exits_with_success_and_the_run_goes_on(place, whole, how):
    out = f"stopped-{how.name}"
    process = start(*command("lora", out, "--save_interval", 1000), cwd=place)
    for line in process.stdout:
        if line.startswith("iter 5 "):
            break
    process.send_signal(how)
    rest = process.stdout.read()
    assert process.wait() == 0 and f"Stopped by {how.name} after step" in rest, rest
    p = run(*command("lora", out, "--resume", "true"), cwd=place)
    assert p.returncode == 0 and "Going on from" in p.stdout
    assert_same(place, whole("lora"), out)


def test_a_second_signal_ends_it_at_once_and_leaves_what_was_saved(place):
    process = start(*command("lora", "twice", "--epochs", 10000, "--save_interval", 3), cwd=place)
    for line in process.stdout:
        if line.startswith("iter 20 "):
            break
    os.kill(process.pid, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM), process.send_signal(signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    process.communicate()
    assert process.returncode in (0, -signal.SIGTERM, -signal.SIGINT)
    assert (
        run(
            *command("lora", "twice", "--epochs", 10000, "--resume", "true", "--max_time", "00:00:01"), cwd=place
        ).returncode
        == 0
    )


@pytest.mark.parametrize("harm", ["truncated", "flipped", "gone", "record"])
def test_a_damaged_checkpoint_is_recognized_and_the_one_before_taken(place, whole, harm):
    reference = whole("lora")
    out = place / f"harmed-{harm}"
    shutil.copytree(place / reference, out, symlinks=True)
    newest = sorted((out / "checkpoints").iterdir())[-1]
    path = newest / (
        "state.json" if harm == "record" else random.Random(harm).choice(["state.pth", "lit_model_lora_finetuned.pth"])
    )
    data = bytearray(path.read_bytes())
    at = random.Random(harm).randrange(len(data))
    if harm == "truncated":
        path.unlink(), path.write_bytes(data[:at])
    elif harm == "gone":
        path.unlink()
    else:
        data[at] ^= 1 << random.Random(harm).randrange(6)
        path.unlink(), path.write_bytes(data)
    p = run(*command("lora", out.name, "--resume", "true"), cwd=place)
    assert p.returncode == 0, p.stderr
    assert "is damaged" in p.stdout and "taking the one before" in p.stdout
    assert_same(place, reference, out.name)


def test_what_would_be_another_run_is_refused_by_name(place, whole):
    reference = whole("lora")
    shutil.copytree(place / reference, place / "changed", symlinks=True)
    more = ("--resume", "true", "--lora_r", 4, "--batch_size", 5)
    p = run(*command("lora", "changed", *more), cwd=place)
    assert_one_line_error(p, "lora_r was 8 and is 4", "batch_size was 6 and is 5", "--allow_changes true")
    p = run(*command("lora", "changed", "--resume", "true", "--epochs", 4), cwd=place)
    assert_one_line_error(p, "epochs was 3.0 and is 4.0")
    p = run(*command("lora", "changed", "--resume", "true", "--epochs", 4, "--allow_changes", "true"), cwd=place)
    assert p.returncode == 0 and "Changed: epochs was 3.0 and is 4.0" in p.stdout, p.stderr
    p = run(*command("lora", "changed", "--resume", "nowhere"), cwd=place)
    assert_one_line_error(p, "--resume nowhere is no checkpoint")


def harm_data(data, how):
    """What happens to a data set between stop and resume, and what the run is to say of it."""
    ids = data / "train.ids.npy"
    if how == "gone":
        shutil.rmtree(data)
        return "is not a prepared data set"
    if how == "one file gone":
        ids.unlink()
        return "train.ids.npy is gone"
    if how == "truncated":
        ids.write_bytes(ids.read_bytes()[:-7])
        return "train.ids.npy"
    values = np.load(ids)
    values[-2] ^= 1
    np.save(ids, values)
    return "data digest was"


@pytest.mark.parametrize("how", ["gone", "one file gone", "truncated", "changed"])
def test_data_that_is_gone_or_another_is_one_line_and_harms_nothing(place, whole, how):
    reference = whole("lora")
    out = f"data-{how}"
    shutil.copytree(place / reference, place / out, symlinks=True)
    checkpoint_store = CheckpointStore(place / out, "lora")
    shutil.rmtree(checkpoint_store.folder_of(checkpoint_store.steps()[-1]))  # so that there is something left to do
    shutil.copytree(place / "data", place / "kept")
    try:
        said = harm_data(place / "data", how)
        assert_one_line_error(run(*command("lora", out, "--resume", "true"), cwd=place), said)
    finally:
        shutil.rmtree(place / "data", ignore_errors=True)
        shutil.move(place / "kept", place / "data")
    p = run(*command("lora", out, "--resume", "true"), cwd=place)
    assert p.returncode == 0, p.stderr
    assert_same(place, reference, out)


def test_a_run_that_is_over_does_its_end_again_and_keeps_what_its_plan_came_to(place, whole):
    reference = whole("lora")
    shutil.copytree(place / reference, place / "again", symlinks=True)
    (place / "again" / "report.html").unlink(), (place / "again" / "loss.png").unlink()
    p = run(*command("lora", "again", "--resume", "true", "--merge", "true", "--average_last", 2), cwd=place)
    assert p.returncode == 0, p.stderr
    assert not re.search(r"^iter ", p.stdout, re.M) and "Mean of the checkpoints of steps" in p.stdout
    for name in ("report.html", "loss.png", "merged/lit_model.pth", "averaged/finetuned.json"):
        assert (place / "again" / name).is_file()
    plan = (place / "again" / "plan.json").read_text()
    assert plan == (place / reference / "plan.json").read_text() and "time until trained" in plan
    assert_same(place, reference, "again")


FULL_DISK = """
import os, subprocess, sys
out, filler = sys.argv[1], os.path.join(sys.argv[1], "filler")
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", out], check=True)

def fill():
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass

fill()
early = subprocess.run(sys.argv[2:], capture_output=True, text=True)
print("EARLY", early.returncode, early.stderr)
os.unlink(filler)
process = subprocess.Popen(sys.argv[2:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
for line in process.stdout:
    print(line, end="")
    if line.startswith("iter 5 ") and "val loss" not in line:
        fill()
    elif "is not saved" in line and os.path.exists(filler):
        os.unlink(filler)
sys.exit(process.wait() or subprocess.run(["cp", "-a", out + "/.", out + "-kept"]).returncode)
"""


def can_mount():
    """Whether a process of its own may mount a small disk."""
    try:
        command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_mount(), reason="no small disk can be mounted here")
def test_a_small_disk_that_is_full_is_an_error_at_the_start_and_none_for_a_while(place, whole):
    """A tmpfs of 3 MB: full before the first step, then empty, and full again from the fifth micro-batch on until a
    checkpoint could not be written."""
    reference = whole("lora")
    (place / "small").mkdir()
    script, *rest = map(str, command("lora", "small"))
    words = [sys.executable, "-c", FULL_DISK, "small", sys.executable, str(ROOT / script), *rest]
    p = subprocess.run(["unshare", "-rm", *words], cwd=place, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0, p.stdout + p.stderr
    early = p.stdout[p.stdout.index("EARLY 1 ") :].splitlines()[0]
    assert "error: " in early and ("bytes free" in early or "could not be written" in early or "No space" in early)
    assert "is not saved" in p.stdout and "The run goes on and tries again" in p.stdout
    assert not leftovers(place / "small-kept")
    assert_same(place, reference, "small-kept")


BACK = """
import time
real, calls = time.time, [0]
def going_back():
    calls[0] += 1
    return real() - 86400 - 60 * calls[0]
time.time = going_back
"""


def test_a_clock_that_is_set_back_changes_nothing(place, whole):
    """By a day, and by a minute more at every look; and the older a checkpoint is, the later its files' time."""
    (place / "clock").mkdir()
    (place / "clock" / "sitecustomize.py").write_text(BACK)
    paths = os.pathsep.join([str(place / "clock"), *os.environ.get("PYTHONPATH", "").split(os.pathsep), str(ROOT)])
    flags = ("--keep_last", 4, "--max_time", "01:00:00")
    p = run(*command("lora", "back", *flags), cwd=place, env={"PYTHONPATH": paths})
    assert p.returncode == 0, p.stderr
    checkpoint_store = CheckpointStore(place / "back", "lora")
    shutil.rmtree(checkpoint_store.folder_of(checkpoint_store.steps()[-1]))
    left = checkpoint_store.steps()
    assert len(left) >= 3
    for n, step in enumerate(left):
        for path in (*checkpoint_store.folder_of(step).iterdir(), checkpoint_store.folder_of(step)):
            os.utime(path, (2e9 - 1e6 * n,) * 2)
    p = run(*command("lora", "back", "--resume", "true", *flags), cwd=place, env={"PYTHONPATH": paths})
    assert p.returncode == 0, p.stderr
    assert f"Going on from back/checkpoints/step-{left[-1]:06d}" in p.stdout
    used = int(re.search(r"Time used: (\d+) of 3600 s", p.stdout)[1])
    assert 0 < used < 300
    assert_same(place, whole("lora"), "back")


def test_killed_and_resumed_a_run_ends_in_time_with_its_learning_rate_at_the_end(place):
    """With a deadline the schedule follows the clock, so that what counts is that it ends as it should.

    The deadline comes with the last start, and leaves that as much time again as the first start took.
    """
    out = place / "deadline"
    flags = ("--epochs", 100_000, "--resume", "true", "--merge", "true", "--average_last", 2, "--keep_last", 2)
    checkpoint_store, spent = CheckpointStore(out, "lora"), []
    for n_steps in (3, 25):
        process = start(*command("lora", out.name, *flags, "--max_time", "01:00:00"), cwd=place, anew=True)
        for line in process.stdout:
            if (step := re.match(r"iter \d+ step (\d+):", line)) and int(step[1]) >= n_steps:
                break
        time.sleep(random.Random(n_steps).uniform(0, 0.5))
        process.kill()
        process.communicate()
        spent.append(max(float((out / LEDGER).read_text()), read_progress(checkpoint_store.newest()).seconds))
    assert 0 < spent[0] < spent[1]  # starting again took time, too
    (out / ".rehearsal.999999999.tmp").mkdir()  # as a process leaves it that is killed while it measures the end
    limit = math.ceil(spent[1] + 2 * spent[0] + 15)
    began = time.monotonic()
    last = command("lora", out.name, *flags, "--max_time", f"00:{limit // 60:02}:{limit % 60:02}")
    process = start(*last, cwd=place, anew=True)
    said, _ = process.communicate()
    took = time.monotonic() - began
    assert process.returncode == 0, said
    used = int(re.search(rf"Time used: (\d+) of {limit} s", said)[1])
    assert used <= limit and used - spent[1] == pytest.approx(took, abs=0.5 * spent[1])
    assert float((out / LEDGER).read_text()) > spent[1]
    with open(out / "metrics.csv", newline="") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file) if row["learning_rate"]]
    assert max(rates) > 0.009 and rates[-1] < 0.001
    assert (out / "merged" / "lit_model.pth").is_file() and "Mean of the checkpoints of steps" in said
    assert read_progress(checkpoint_store.newest()).finish_seconds > 0
    assert not list(out.rglob(".*.tmp"))
    # each part by itself, after the time is over
    p = run("eval/validate.py", "--checkpoint_dir", "checkpoint", "--finetuned_path", out, cwd=place)
    assert p.returncode == 0, p.stderr
    with open(out / "metrics.csv", newline="") as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    assert float(re.search(r"val loss ([\d.]+)", p.stdout)[1]) == pytest.approx(losses[-1], abs=1e-4)
    for name in ("loss.png", "report.html"):
        (out / name).unlink()
    p = run("scripts/write_report.py", "--finetuned_path", out, cwd=place)
    assert p.returncode == 0 and (out / "loss.png").is_file() and (out / "report.html").is_file(), p.stderr


def test_the_last_checkpoints_and_the_best_stay_and_each_can_be_used(place, whole):
    out = place / whole("lora")
    kept = sorted(p.name for p in (out / "checkpoints").iterdir())
    best = json.loads((out / "best" / "state.json").read_text())["best_step"]
    assert 2 <= len(kept) <= 3 and f"step-{best:06d}" in kept
    for folder in (*(out / "checkpoints").iterdir(), out / "best"):
        p = run(
            "generate/lora.py",
            "--checkpoint_dir",
            "checkpoint",
            "--finetuned_path",
            folder,
            "--prompt",
            "say",
            "--max_new_tokens",
            3,
            cwd=place,
        )
        assert p.returncode == 0, p.stderr
