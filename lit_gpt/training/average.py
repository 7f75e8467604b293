"""The mean of a run's latest checkpoints, as a run of its own (https://arxiv.org/abs/1803.05407)."""

import shutil
from pathlib import Path

import torch

from lit_gpt.checkpoint import RUN
from lit_gpt.errors import UserError
from lit_gpt.files import load_state, replace_folder, save_state
from lit_gpt.training.saves import Saves, read_progress

AVERAGED = "averaged"
"""Folder within that of the run; can be given as --finetuned_path."""


def save_average(saves: Saves, n: int) -> tuple[Path, list[int]]:
    """Write the mean of the trained weights of the last `n` checkpoints; the folder, and their steps.

    Raises:
        UserError: there are fewer, or one is damaged.
    """
    steps = saves.steps()[-n:]
    if len(steps) < n:
        raise UserError(f"--average_last {n}: the run has {len(steps)} checkpoints; lower --save_interval")
    for step in steps:
        read_progress(saves.place(step))
    folder = saves.out_dir / AVERAGED
    write_mean([saves.place(step) for step in steps], saves, folder)
    return folder, steps


def write_mean(places: list[Path], saves: Saves, folder: Path) -> None:
    """Fill `folder` with the mean of the trained weights of the checkpoints in `places`, as a run."""
    states = [load_state(place / saves.weights.name, "the finetune script") for place in places]
    mean = {
        name: (torch.stack([state[name].double() for state in states]).mean(0)).to(states[-1][name].dtype)
        for name in states[-1]
    }

    def fill(place: Path) -> None:
        save_state(mean, place / saves.weights.name)
        if (saves.out_dir / RUN).is_file():
            shutil.copyfile(saves.out_dir / RUN, place / RUN)

    replace_folder(folder, fill, overwrite=True)
