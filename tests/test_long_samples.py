"""A sample of 100,000 tokens is left out, cut or refused where a model has no room for it, and trains where it has."""

import json

import pytest
import torch
from conftest import assert_one_line_error, write_tokenizer
from script_processes import run

from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.config import Config
from lit_gpt.files import save_state
from lit_gpt.model import GPT

N_TOKENS = 100_000
"""About how many tokens the long sample has."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with rows of which one is long, and checkpoints of one layer, `short` and `long`, with a window."""
    place = tmp_path_factory.mktemp("lengths")
    for name, block_size in (("short", 64), ("long", 2**17)):
        config = Config(
            name=name, n_layer=1, n_head=1, n_query_groups=1, n_embd=16, vocab_size=266, padding_multiple=8,
            block_size=block_size, norm="rms", mlp="gated", activation="silu", parallel_residual=False,
            rotary_percentage=1.0, intermediate_size=24, sliding_window=64,
        )  # fmt: skip
        (place / name).mkdir()
        write_tokenizer(place / name)
        config.to_json(place / name / CONFIG)
        torch.manual_seed(0)
        save_state({name: x.clone() for name, x in GPT(config).state_dict().items()}, place / name / WEIGHTS)
    rows = [{"instruction": f"say {i}", "output": "ok " * 3} for i in range(8)]
    rows.append({"instruction": "tell it all", "output": "abcdefghi " * (N_TOKENS // 10)})
    (place / "rows.json").write_text(json.dumps(rows))
    (place / "val.json").write_text(json.dumps(rows[:2]))
    return place


def prepared(place, checkpoint, *flags):
    """What preparing the rows for a checkpoint said."""
    return run("scripts/prepare_json.py", "--checkpoint_dir", checkpoint, "--json_path", "rows.json",
               "--validation_file", "val.json", "--prompt_style", "plain", "--destination_path", "data",
               "--overwrite", "true", *flags, cwd=place)  # fmt: skip


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "train: 8 samples, 120 tokens of which 80 are targets, length 15 in the median and 15 at most; "
             "dropped: 1 longer than 64 tokens"),
        (["--truncation", "cut_end"], "length 15 in the median and 64 at most; cut: 1 at the end"),
        (["--max_seq_length", 32, "--truncation", "cut_end"], "and 32 at most; cut: 1 at the end"),
        (["--max_seq_length", 100_000], "dropped: 1 longer than 64 tokens"),
    ],
)  # fmt: skip
def test_a_sample_longer_than_the_model_is_left_out_or_cut_and_counted(place, flags, said):
    done = prepared(place, "short", *flags)
    assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr


def test_a_sample_longer_than_the_model_is_refused_with_its_place_if_none_may_be_lost(place):
    done = prepared(place, "short", "--truncation", "error")
    assert_one_line_error(done, "rows.json, entry 9", "a sample of more than 64 tokens", "--truncation drop")


def test_a_sample_that_the_model_has_room_for_is_planned_and_trains(place):
    done = prepared(place, "long")
    assert done.returncode == 0 and "and 100,012 at most; none dropped or cut" in done.stdout, done.stderr
    assert "longest 100,012 of 131,072 possible" in done.stdout
    train = ["finetune/lora.py", "--checkpoint_dir", "long", "--data_dir", "data", "--lora_r", 2, "--warmup_steps", 0,
             "--batch_size", 9, "--max_steps", 1]  # fmt: skip
    planned = run(*train, "--dry_run", "true", cwd=place)
    assert planned.returncode == 0, planned.stderr
    for part in ("100,132 tokens", "samples that are longer than a pass have one each"):
        assert part in planned.stdout, planned.stdout
    done = run(*train, cwd=place)
    assert done.returncode == 0, done.stderr
    for part in ("The longest training sample has 100012 tokens, the model has room for 131072", "iter 1 step 1: loss"):
        assert part in done.stdout, done.stdout
    assert "nan" not in done.stdout and (place / "out/lora/long/lit_model_lora_finetuned.pth").is_file()


def test_a_sample_that_another_model_has_room_for_is_refused_before_training(place):
    assert prepared(place, "long").returncode == 0
    asked = ("--checkpoint_dir", "short", "--data_dir", "data")
    for argv in (["finetune/lora.py", "--max_steps", 1], ["finetune/lora.py", "--dry_run", "true"]):
        done = run(*argv, *asked, cwd=place)
        assert_one_line_error(done, "data has a sample of 100,012 tokens", "room for 64", "--max_seq_length 64")
        assert "Plan" not in done.stdout and not (place / "out/lora/short").exists()
    done = run("eval/validate.py", *asked, cwd=place)
    assert done.returncode == 0, done.stderr  # its samples are short ones
