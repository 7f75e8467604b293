"""Finds the checkpoint that a run resumes from, and checks that it is still the same run."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from lit_gpt.args import TrainArgs, ValidationArgs
from lit_gpt.args.folders import RUN, results_of
from lit_gpt.args.formats import without_format
from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.args.preferences import PreferenceArgs
from lit_gpt.args.rollouts import CheckerArgs
from lit_gpt.args.training import free_flags
from lit_gpt.checkpoints.origin import changed_origin
from lit_gpt.checkpoints.runs import Run, run_text
from lit_gpt.errors import UserError
from lit_gpt.methods import METHODS
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.progress import RECORD, DamagedError, read_progress
from lit_gpt.training.run.refusal import impossible, refusal

_ELSEWHERE = ("folder", "checkpoint_dir", "source", "validation_source", "path", "command")
"""Keys of meta.json, and of a mixture's sources in it, with paths and how it was asked for, which may have changed."""
_CONTENTS = "contents"
"""Key of a run's data with a hash of all tokens and labels of each split, and of the weights of `SFT_RUN`."""
SFT_RUN = "sft_run"
"""Entry there for the run that a run on preferences went on from, if it did."""


def checkpoint_to_resume(checkpoint_store: CheckpointStore, resume: Literal[True] | Path) -> Path | None:
    """Returns the folder of the checkpoint to resume from; None, which it says, if the run has none yet.

    Args:
        resume: a checkpoint's folder, or True for the newest whole one.

    Raises:
        UserError: it is no checkpoint, not one of this run, or damaged, as all of them may be.
    """
    if resume is True:
        checkpoint = checkpoint_store.newest()
        if checkpoint is None and (results := results_of(checkpoint_store.out_dir)):
            raise UserError(
                f"{checkpoint_store.out_dir} has {results[0].name} and no checkpoint to resume from; copy one back "
                f"into {checkpoint_store.folder}, or pass --overwrite true to train anew and replace what is there, "
                "or another --out_dir"
            )
        print(
            f"{checkpoint_store.out_dir} has no checkpoint yet: starting anew"
            if checkpoint is None
            else f"Going on from {checkpoint}"
        )
        return checkpoint
    checkpoint = Path(resume)
    if not (checkpoint / RECORD).is_file():
        raise UserError(f"--resume {checkpoint} is no checkpoint (no {RECORD}); true takes the newest one of --out_dir")
    checkpoint_store.clear()
    try:
        checkpoint = checkpoint_store.own(checkpoint)
        if checkpoint.resolve().parent != checkpoint_store.folder.resolve():
            raise UserError(f"--resume {checkpoint} is not a checkpoint of --out_dir {checkpoint_store.out_dir}")
        read_progress(checkpoint)
    except DamagedError as e:
        raise UserError(f"{e}; --resume true takes the newest one that is whole") from e
    print(f"Going on from {checkpoint}")
    return checkpoint


def require_same(run: Run, earlier: Run, allow_changes: bool) -> None:
    """Checks that a resumed run is the same run as before.

    Args:
        earlier: as the checkpoint has it.
        allow_changes: say what is another than before, and go on.

    Raises:
        UserError: arguments, data or base weights that make it another run.
    """
    changes = _changes(run, earlier)
    if impossible(changes) or (changes and not allow_changes):
        raise UserError(refusal(changes))
    for change in changes.values():
        print(f"Changed: {change}")
    for package in run.versions.keys() & earlier.versions.keys():
        if run.versions[package] != earlier.versions[package]:
            was, is_ = earlier.versions[package], run.versions[package]
            print(f"{package} was {was} and is {is_}: results may differ in the last digits")


def _changes(run: Run, earlier: Run) -> dict[str, str]:
    """Returns what has changed since the earlier run: name of the flag or key -> a sentence that says how.

    A flag that a later version of the toolkit added had its default before.
    """
    now, before = _facts(run), _facts(earlier)
    before = {name: default for name, default in _defaults(run.method).items() if name in now} | before
    names = dict.fromkeys((*before, *now))
    changes = {n: f"{n} was {before.get(n)!r} and is {now.get(n)!r}" for n in names if before.get(n) != now.get(n)}
    origin = changed_origin(run.base_files, earlier.base_files, same_dtypes=True)
    return changes | _changed_contents(run, earlier) | origin


def _changed_contents(run: Run, earlier: Run) -> dict[str, str]:
    """Returns what of that which the run learns from is other than before: name -> a sentence that says so.

    That is the tokens or labels of a split, and the weights of the run that it went on from. What an earlier version
    did not record is not compared.
    """
    now, before = (r.data.get(_CONTENTS) for r in (run, earlier))
    if not isinstance(now, dict) or not isinstance(before, dict):
        return {}
    changed = [part for part in now if part in before and now[part] != before[part]]
    named = {part: f"the tokens or labels of {part}" for part in changed}
    if SFT_RUN in named:
        named[SFT_RUN] = f"the weights of --sft_run {run.training.get(SFT_RUN)}"
    return {f"data of {part}": f"{what} are others than before" for part, what in named.items()}


def _defaults(method: str) -> dict[str, Any]:
    """Returns the default of every flag that a record has, by its name."""
    kinds = (TrainArgs, ValidationArgs, PreferenceArgs, GrpoArgs, CheckerArgs, METHODS[method].args)
    return {f.name: f.default for kind in kinds for f in fields(kind)}


def _without_paths(value: Any) -> Any:
    """Returns what the record of a data set says, but for where its files were and how it was asked for."""
    if isinstance(value, dict):
        return {name: _without_paths(x) for name, x in value.items() if name not in _ELSEWHERE}
    return value


def _facts(run: Run) -> dict[str, Any]:
    """Returns what identifies a run, by the name of the flag or key, as JSON values."""
    run = Run(**without_format(Path(RUN), json.loads(run_text(run))))
    data = {f"data {name}": value for name, value in _without_paths(run.data).items() if name != _CONTENTS}
    training = {
        name: value
        for name, value in run.training.items()
        if name not in free_flags(TrainArgs, ValidationArgs, PreferenceArgs, GrpoArgs)
    }
    record = {k: v for k, v in asdict(run).items() if k in ("method", "prompt_style", "quantize")}
    record["base_digest"] = run.base_digest.partition("-")[0]  # all bytes are `require_undamaged`'s
    return record | run.method_args | data | training
