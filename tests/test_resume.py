"""A run that is killed, stopped or damaged goes on to be the run it would have been, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, assert_one_line_error, run, tiny_hf, write_tokenizer

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
    """The uninterrupted run of a setting, and how long it took."""
    runs = {}

    def get(setting):
        if setting not in runs:
            began = time.monotonic()
            p = run(*command(setting, f"whole-{setting}"), cwd=place)
            assert p.returncode == 0, p.stderr
            runs[setting] = (f"whole-{setting}", time.monotonic() - began)
        return runs[setting]

    return get


def start(place, setting, out, *flags):
    script, *rest = map(str, command(setting, out, *flags))
    return subprocess.Popen([sys.executable, str(ROOT / script), *rest], cwd=place, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def leftovers(folder):
    return [p for p in folder.rglob(".*") if p.name.endswith(".tmp")]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(place, whole, setting):
    """SIGKILL three times a setting: while it saves, and at random moments of the training."""
    reference, _ = whole(setting)
    out, moments = f"killed-{setting}", random.Random(setting)
    n_killed = 0
    while n_killed < 3:
        process = start(place, setting, out, "--resume", "true")
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


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_success_and_the_run_goes_on(place, whole, how):
    out = f"stopped-{how.name}"
    process = start(place, "lora", out, "--save_interval", 1000)
    for line in process.stdout:
        if line.startswith("iter 5 "):
            break
    process.send_signal(how)
    rest = process.stdout.read()
    assert process.wait() == 0 and f"Stopped by {how.name} after step" in rest, rest
    p = run(*command("lora", out, "--resume", "true"), cwd=place)
    assert p.returncode == 0 and "Going on from" in p.stdout
    assert_same(place, whole("lora")[0], out)


def test_a_second_signal_ends_it_at_once_and_leaves_what_was_saved(place):
    process = start(place, "lora", "twice", "--epochs", 10000, "--save_interval", 3)
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
    reference, _ = whole("lora")
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
    reference, _ = whole("lora")
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
    shutil.move(place / "data", place / "moved")
    try:
        p = run(*command("lora", "changed", "--resume", "true"), cwd=place)
        assert_one_line_error(p, "data is not a prepared data set")
    finally:
        shutil.move(place / "moved", place / "data")


def test_the_last_checkpoints_and_the_best_stay_and_each_can_be_used(place, whole):
    out = place / whole("lora")[0]
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
