"""The road as its users type it, on a tiny checkpoint, from another working directory; and what bad input gets."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, assert_one_line_error
from script_processes import run

ROWS = [
    {"instruction": f"say {w} {n} times", "input": "", "output": " ".join([w] * n)}
    for w in ("ab", "cd")
    for n in range(1, 6)
]
TRAIN = ["--batch_size", 4, "--micro_batch_size", 2, "--epochs", 2, "--learning_rate", 0.01]


@pytest.fixture(scope="module")
def place(tmp_path_factory, downloaded):
    """A folder in which the road has been walked up to the data."""
    place = tmp_path_factory.mktemp("road")
    real = place / "elsewhere" / "tiny"
    shutil.copytree(downloaded["llama-gqa"], real, ignore=shutil.ignore_patterns("lit_*"))
    (place / "checkpoints" / "org").mkdir(parents=True)
    (place / "checkpoints" / "org" / "tiny").symlink_to(real)
    (place / "rows.json").write_text(json.dumps(ROWS))
    p = run("scripts/convert_hf_checkpoint.py", "--checkpoint_dir", "checkpoints/org/tiny", cwd=place)
    assert p.returncode == 0, p.stderr
    assert "Model config Config(name='tiny', " in p.stdout and "softcapping" not in p.stdout  # what is as usual
    p = run("scripts/prepare_alpaca.py", "--checkpoint_dir", "checkpoints/org/tiny", "--data_file", "rows.json",
            "--destination_path", "data/rows", "--prompt_style", "plain", "--test_split_fraction", 0.2,
            cwd=place)  # fmt: skip
    assert p.returncode == 0, p.stderr
    assert "train has 8 rows, val has 2" in p.stdout and "none dropped or cut" in p.stdout
    return place


@pytest.mark.smoke
def test_finetune_then_generate_from_what_was_trained(place):
    base = ("--checkpoint_dir", "checkpoints/org/tiny")
    p = run("finetune/lora.py", *base, "--data_dir", "data/rows/", *TRAIN, cwd=place)
    assert p.returncode == 0, p.stderr
    for line in ("Number of trainable parameters: 1,792", "Number of non trainable parameters: 36,000",
                 "Estimated TFLOPs", "Measured TFLOPs", "iter 1 step 1: loss", "(optimizer.step)", "val loss",
                 "Training time:", "Memory used:",
                 "out/lora/tiny/lit_model_lora_finetuned.pth"):  # fmt: skip
        assert line in p.stdout, p.stdout
    out = place / "out" / "lora" / "tiny"
    saved = torch.load(out / "lit_model_lora_finetuned.pth", weights_only=True)
    assert saved and all(".lora_" in name and x.dtype == torch.float32 for name, x in saved.items())
    assert json.loads((out / "finetuned.json").read_text())["prompt_style"] == "plain"
    assert (out / "loss.png").stat().st_size > 5000
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    again = run("finetune/lora.py", *base, "--data_dir", "data/rows", *TRAIN, cwd=place)
    assert_one_line_error(again, "out/lora/tiny", "--overwrite true")
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before

    ask = ("--prompt", "say ab 2 times", "--temperature", 0, "--max_new_tokens", 12)
    p = run("generate/lora.py", *base, *ask, cwd=place)
    assert p.returncode == 0 and "tokens/sec" in p.stderr and "Memory used" in p.stderr, p.stderr
    assert "Loading" not in p.stdout and p.stdout.endswith("\n")
    other = run("generate/lora.py", *base, *ask, "--finetuned_path", out / "lit_model_lora_finetuned.pth", cwd=place)
    assert other.stdout == p.stdout
    (out / "finetuned.json").write_text(
        (out / "finetuned.json").read_text().replace('"base_digest": "', '"base_digest": "x')
    )
    assert_one_line_error(run("generate/lora.py", *base, cwd=place), "other weights", "checkpoints/org/tiny")


def test_what_an_interrupted_run_saved_can_be_used_and_is_not_overwritten(place):
    script = [sys.executable, str(ROOT / "finetune/lora.py"), "--checkpoint_dir", "checkpoints/org/tiny"]
    flags = ["--data_dir", "data/rows", "--out_dir", "out/cut", "--epochs", "1e6", "--save_interval", "1"]
    flags += ["--batch_size", "4", "--eval_interval", "1000000"]
    weights = place / "out/cut/lit_model_lora_finetuned.pth"
    with subprocess.Popen([*script, *flags], cwd=place, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not weights.is_file() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
        process.kill()
    p = run("generate/lora.py", "--checkpoint_dir", "checkpoints/org/tiny", "--finetuned_path", "out/cut", cwd=place)
    assert p.returncode == 0, p.stderr
    p = subprocess.run([*script, *flags], cwd=place, capture_output=True, text=True, timeout=300)
    assert_one_line_error(p, "out/cut", "--overwrite true")
    assert weights.is_file()


def test_generate_from_the_base_echoes_the_prompt_and_takes_an_empty_one(place):
    base = ("generate/base.py", "--checkpoint_dir", "checkpoints/org/tiny", "--temperature", 0, "--max_new_tokens", 5)
    p = run(*base, "--prompt", "the and", cwd=place)
    assert p.returncode == 0 and p.stdout.startswith("the and"), p.stderr
    assert run(*base, "--prompt", "", cwd=place).returncode == 0


@pytest.mark.parametrize(
    "argv, parts",
    [
        (
            ["generate/base.py", "--checkpoint_dir", "checkpoints/org/tini"],
            ["checkpoints/org/tini", "checkpoints/org/tiny"],
        ),
        (["generate/base.py", "--checkpoint_dir", "empty"], ["lit_model.pth", "convert_hf_checkpoint.py"]),
        (["generate/base.py", "--checkpoint_dir", "cut"], ["cut/lit_model.pth", "truncated"]),
        (
            ["finetune/lora.py", "--checkpoint_dir", "checkpoints/org/tiny", "--data_dir", "empty"],
            ["empty", "prepare_alpaca.py"],
        ),
        (
            [
                "finetune/lora.py",
                "--checkpoint_dir",
                "checkpoints/org/tiny",
                "--data_dir",
                "data/rows",
                "--prompt_style",
                "alpaca",
            ],
            ["plain", "alpaca", "--prompt_style"],
        ),
        (["finetune/lora.py", "--checkpoint_dir", "other", "--data_dir", "data/rows"], ["tokenizer", "data/rows"]),
        (["finetune/lora.py", "--lerning_rate", "1"], ["--lerning_rate", "--learning_rate"]),
        (["finetune/lora.py", "--epochs", "many"], ["--epochs", "many"]),
        (["finetune/lora.py", "--micro_batch_tokens", "0"], ["--micro_batch_tokens 0", "at least 1"]),
        (
            ["scripts/convert_hf_checkpoint.py", "--checkpoint_dir", "unknown"],
            ["unknown/config.json", "MysteryForCausalLM"],
        ),
    ],
)
def test_bad_input_is_one_line_that_names_it(place, argv, parts):
    tiny = (place / "checkpoints/org/tiny").resolve()
    (place / "empty").mkdir(exist_ok=True)
    for name in ("cut", "other", "unknown"):
        if not (place / name).exists():
            shutil.copytree(tiny, place / name)
    (place / "cut/lit_model.pth").write_bytes((tiny / "lit_model.pth").read_bytes()[:-2000])
    config = json.loads((place / "other/tokenizer_config.json").read_text())
    (place / "other/tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    config = json.loads((tiny / "config.json").read_text())
    (place / "unknown/config.json").write_text(json.dumps({**config, "architectures": ["MysteryForCausalLM"]}))
    before = (tiny / "lit_model.pth").read_bytes()
    assert_one_line_error(run(*argv, cwd=place), *parts)
    assert (tiny / "lit_model.pth").read_bytes() == before and not (place / "out/lora/other").exists()


def test_a_gpu_that_is_too_small_is_one_line_with_the_way_out(capsys, monkeypatch):
    import sys

    import torch

    from lit_gpt import cli

    def main(recompute: str = "auto", micro_batch_tokens: int = 1, batch_size: int = 1) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of ..."
        )

    monkeypatch.setattr(sys, "argv", ["finetune.py"])
    monkeypatch.setattr(sys, "stdout", type("Out", (), {"reconfigure": lambda self, **kw: None})())
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    said = capsys.readouterr().err.strip()
    assert end.value.code == 1 and said.count("\n") == 0
    assert said == (
        "error: the GPU has too little memory (CUDA out of memory); try --recompute all or --micro_batch_tokens 1024"
    )
