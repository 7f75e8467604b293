"""Compares a run that train.sh made again with the one that was submitted."""

from collections.abc import Iterator
from pathlib import Path

from lit_gpt.checkpoints.origin import is_other
from lit_gpt.checkpoints.runs import read_run
from lit_gpt.errors import UserError
from lit_gpt.submission.manifest import read_manifest
from lit_gpt.submission.results import final_loss


def compare_trained(folder: Path, run_dir: Path) -> Iterator[str]:
    """Yields lines on what a repeated run has in common with the submitted one, and its validation loss beside that's.

    Raises:
        UserError: base, data or arguments are others.
    """
    found, run = read_manifest(folder), read_run(run_dir)
    if is_other(str(found["base"].get("digest")), run.base_digest):
        raise UserError(f"{run_dir} was trained on another base than the submission's run")
    yield "base         the same weights"
    before, now = found["data"].get("contents"), run.data.get("contents")
    if before != now:
        raise UserError(f"{run_dir} was trained on other tokens or labels than the submission's run")
    yield "data         the same tokens and labels"
    ours = found["run"].get("method_args"), found["run"].get("prompt_style")
    if ours != (run.method_args, run.prompt_style):
        raise UserError(f"{run_dir} was trained with other arguments of {run.method}, or another prompt style")
    yield f"arguments    {run.method}, prompt style {run.prompt_style}, seed {run.training.get('seed')}"
    loss, first = final_loss(run_dir), found["run"].get("val_loss")
    if isinstance(first, int | float) and loss is not None:
        yield f"loss         {loss:.4f} on the validation data, and {first:.4f} in the submitted run"
