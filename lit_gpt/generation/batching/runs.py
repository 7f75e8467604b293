"""Finetuned runs that one engine serves over one base model."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lit_gpt.args.folders import run_folder
from lit_gpt.checkpoints.runs import Run, read_run, require_base
from lit_gpt.checkpoints.trained import load_trained, trained_path
from lit_gpt.errors import UserError
from lit_gpt.methods import METHODS
from lit_gpt.methods.lora.shared import Updates, updates_of
from lit_gpt.model import GPT


class SharedRun(NamedTuple):
    """A LoRA run whose updates are beside the base model's weights, not in them."""

    record: Run
    """How it was trained: its prompt style, the tokens that end its answers."""
    updates: Mapping[str, Updates]
    """Path of a linear layer -> the updates of it."""


def load_shared(
    model: GPT, base_digest: str, checkpoint_dir: Path, folders: Mapping[str, Path]
) -> dict[str, SharedRun]:
    """Returns runs by name, to be served together over one base model.

    Args:
        model: the base model; it does not change.
        base_digest: the digest of its weights, as `load_base` returns it.
        folders: name -> folder of a run, or the weights file in it.

    Raises:
        UserError: a folder is no run, a damaged one, one of another base, or of a method that cannot share a base.
    """
    return {
        name: _load(model, base_digest, checkpoint_dir, name=name, folder=run_folder(f)) for name, f in folders.items()
    }


def _load(model: GPT, base_digest: str, checkpoint_dir: Path, name: str, folder: Path) -> SharedRun:
    record = read_run(folder)
    if record.method != "lora":
        raise UserError(
            f"the run {name} ({folder}) was trained with {record.method}; only LoRA runs share one base model: serve "
            "it alone"
        )
    require_base(record, folder, checkpoint_dir, base_digest)
    trained = load_trained(trained_path(folder, record.method))
    return SharedRun(record, updates_of(model, METHODS["lora"].args(**record.method_args), trained, name))
