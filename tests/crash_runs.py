"""A tiny run with everything at its end, from arguments to files, for tests that stop it at any moment."""

from collections.abc import Callable
from pathlib import Path

import torch
from conftest import write_tokenizer
from tiny import make_samples

from lit_gpt.args import LoRAArgs, RunArgs, TrainArgs, ValidationArgs
from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.config import Config
from lit_gpt.data import store
from lit_gpt.fabric import make_fabric
from lit_gpt.files import save_state
from lit_gpt.finetuning import finetune
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer

STEPS = 3
KEEP_LAST = 2
TRAIN = {"batch_size": 2, "max_steps": STEPS, "learning_rate": 0.05, "warmup_steps": 1, "micro_batch_tokens": 100}
TRAIN |= {"save_interval": 1, "keep_last": KEEP_LAST, "average_last": 2, "log_interval": 1, "compile": False}
TIMED = ("seconds", "tokens_per_sec", "iter_time_ms", "of_peak", "memory_gb")
"""Columns of metrics.csv that no two runs have in common."""
WEIGHTS_OF_RUN = "lit_model_lora_finetuned.pth"


def make_place(folder: Path) -> Path:
    """Makes a checkpoint of one layer, and prepared data for it, in `folder`."""
    checkpoint, data = folder / "checkpoint", folder / "data"
    checkpoint.mkdir(parents=True)
    write_tokenizer(checkpoint)
    config = Config(
        name="tiny", n_layer=1, n_head=2, n_query_groups=1, n_embd=16, vocab_size=266, padding_multiple=8,
        block_size=64, norm="rms", mlp="gated", activation="silu", parallel_residual=False, rotary_percentage=1.0,
        intermediate_size=24,
    )  # fmt: skip
    config.to_json(checkpoint / CONFIG)
    torch.manual_seed(0)
    save_state({name: x.clone() for name, x in GPT(config).state_dict().items()}, checkpoint / WEIGHTS)
    splits = {"train": make_samples(6), "val": make_samples(6)}  # the same, so that each step is the best so far
    meta = {
        "tokenizer": Tokenizer(checkpoint).fingerprint(),
        "checkpoint_dir": "checkpoint",
        "prompt_style": "plain",
    }
    meta |= {"samples": {name: len(samples) for name, samples in splits.items()}, "max_seq_length": 64}
    store.save(data, splits, meta)
    return folder


def training(
    place: Path, out: Path, resume: bool | Path = False, overwrite: bool = False, **train
) -> Callable[[], None]:
    """Returns a function that trains in `out` with LoRA, merges, and takes the mean of the last checkpoints."""

    def run() -> None:
        args = FinetuneArgs(
            method="lora",
            method_args=LoRAArgs(lora_r=2, lora_dropout=0.1),
            checkpoint_dir=place / "checkpoint",
            data_dir=place / "data",
            out_dir=out,
            train=TrainArgs(**TRAIN | train),
            validation=ValidationArgs(eval_interval=1),
            run=RunArgs(resume=resume, overwrite=overwrite),
            merge=True,
        )
        finetune(make_fabric("32-true", args.run.seed), args)

    return run


def contents(out: Path) -> dict[str, object]:
    """Returns all that a run came to which does not depend on the time it took."""
    merged, averaged = out / "merged" / WEIGHTS, out / "averaged" / WEIGHTS_OF_RUN
    found: dict[str, object] = {"metrics": metrics(out)}
    for path in (out / WEIGHTS_OF_RUN, merged, averaged, out / "best" / WEIGHTS_OF_RUN):
        state = torch.load(path, weights_only=True)
        found[str(path.relative_to(out))] = {name: x.numpy().tobytes() for name, x in state.items()}
    found["files"] = sorted(str(p.relative_to(out)) for p in out.rglob("*"))
    return found


def metrics(out: Path) -> list[list[str]]:
    """Returns the lines of metrics.csv, without the columns that time."""
    lines = [line.split(",") for line in (out / "metrics.csv").read_text().splitlines()]
    timed = {lines[0].index(name) for name in TIMED}
    return [[x for i, x in enumerate(line) if i not in timed] for line in lines]
