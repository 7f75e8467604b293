"""The mean of a run's latest checkpoints, as a run of its own (https://arxiv.org/abs/1803.05407)."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from lit_gpt.args import TrainArgs
from lit_gpt.args.folders import RUN
from lit_gpt.errors import UserError
from lit_gpt.files import load_state, replace_folder, save_state
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.progress import read_progress

AVERAGED = "averaged"
"""Folder within that of the run; can be given as --finetuned_path."""


def require_checkpoints(train: TrainArgs, n_steps: int) -> None:
    """Checks that a run of `n_steps` steps leaves enough checkpoints for --average_last.

    Raises:
        UserError: it may leave fewer.
    """
    n_sure = -(-n_steps // train.save_interval)  # at each interval and at the end
    if train.average_last > n_sure:
        raise UserError(
            f"--average_last {train.average_last}: {n_steps:,} steps with --save_interval {train.save_interval} are "
            f"sure to leave {n_sure} checkpoints; lower --save_interval"
        )


def save_average(checkpoint_store: CheckpointStore, n: int) -> tuple[Path, list[int]]:
    """Writes the mean of the trained weights of the last `n` checkpoints; returns its folder and their steps.

    The checkpoint of step 0, which has not been trained, is not among them.

    Raises:
        UserError: there are fewer, or one is damaged.
    """
    steps = [step for step in checkpoint_store.steps() if step > 0][-n:]
    if len(steps) < n:
        raise UserError(f"--average_last {n}: the run has {len(steps)} checkpoints after step 0; lower --save_interval")
    for step in steps:
        read_progress(checkpoint_store.folder_of(step))
    folder = checkpoint_store.out_dir / AVERAGED
    write_mean([checkpoint_store.folder_of(step) for step in steps], checkpoint_store, folder)
    return folder, steps


def write_mean(checkpoints: list[Path], checkpoint_store: CheckpointStore, folder: Path) -> None:
    """Writes the mean of the trained weights of these checkpoints to `folder`, which can then be used as a run."""
    states = [
        load_state(checkpoint / checkpoint_store.weights.name, "the finetune script") for checkpoint in checkpoints
    ]
    mean: dict[str, Tensor] = {}
    owners: dict[int, str] = {}
    for name, x in states[-1].items():
        owner = owners.setdefault(x.data_ptr(), name)  # a tied head is stored once, under both of its names
        shared = owner in mean and x.shape == mean[owner].shape
        mean[name] = mean[owner] if shared else torch.stack([s[name].double() for s in states]).mean(0).to(x.dtype)

    def fill(checkpoint: Path) -> None:
        save_state(mean, checkpoint / checkpoint_store.weights.name)
        if (checkpoint_store.out_dir / RUN).is_file():
            shutil.copyfile(checkpoint_store.out_dir / RUN, checkpoint / RUN)

    replace_folder(folder, fill, overwrite=True)
