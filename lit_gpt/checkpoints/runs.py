"""Finetuned runs: what the folder out/<method>/<name>/ holds, and how a finetuned model is loaded from it.

out/<method>/<name>/       trained weights (trained_path), finetuned.json, metrics.csv, loss.png       (finetune/*.py)
  checkpoints/, best       checkpoints that a run resumes from, and a link to the best of them
                           (lit_gpt/training/run/checkpoint_store.py)
  merged/, averaged/       with --merge true and --average_last: merged weights, the mean of the last checkpoints
  plan.json, report.html   the plan with what came of it, and the report
  seconds_used.txt         time that a run with a deadline has used
"""

import json
import platform
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

from lit_gpt import __version__
from lit_gpt.args import Precision, TrainArgs, ValidationArgs
from lit_gpt.args.folders import RUN, require_run, run_folder
from lit_gpt.args.formats import read_record, require_known, with_format
from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.args.preferences import PreferenceArgs
from lit_gpt.args.rollouts import CheckerArgs
from lit_gpt.checkpoints.base import build, digest_of, load_base
from lit_gpt.checkpoints.configs import read_config
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.checkpoints.origin import changed_origin, is_other, origin_of, require_undamaged
from lit_gpt.checkpoints.trained import check_fit, load_trained, trained_path
from lit_gpt.errors import UserError, shown
from lit_gpt.files import open_state, write_text
from lit_gpt.files.checksums import intact
from lit_gpt.layers.quantize import QUANTIZATIONS
from lit_gpt.lightning import Fabric
from lit_gpt.methods import METHODS, trained_parameters
from lit_gpt.model import GPT
from lit_gpt.prompts.wording import reworded, say
from lit_gpt.records import require_types

_REMEDY = "take the copy in one of the run's checkpoints"
_KINDS_OF_TRAINING: dict[str, Any] = {
    **get_type_hints(TrainArgs),
    **get_type_hints(ValidationArgs),
    **get_type_hints(PreferenceArgs),
    **get_type_hints(GrpoArgs),
    **get_type_hints(CheckerArgs),
    "seed": int,
    "precision": Precision | None,
}
"""Entry of `Run.training` -> its type."""
_FLAG_OF = {"preference": "simpo_gamma", "grpo": "group_size"}
"""Script that takes any method -> a flag that it alone has."""
_KINDS_OF_DATA = {"folder": str, "end_ids": list[int]}
"""Entry of `Run.data` that is read again, and not only compared -> its type."""

_KINDS_OF_BASE = {"config": dict[str, Any]}
"""Entry of `Run.base_files` that is read again -> its type."""


@dataclass(frozen=True)
class Run:
    """The record of a run in finetuned.json: all it takes to load the trained weights, and where they came from."""

    method: str
    """Key of METHODS."""
    method_args: dict[str, Any]
    prompt_style: str
    base: str
    """Folder of the checkpoint that was finetuned."""
    base_digest: str
    """Digest of the base checkpoint's weights, as `load_base` returned it."""
    data: dict[str, Any]
    """Content of the training data's meta.json, and the data's folder."""
    training: dict[str, Any]
    """Arguments of training and validation, the seed and the precision."""
    versions: dict[str, str]
    quantize: str | None = None
    """Key of QUANTIZATIONS: how the base weights were quantized in training; None if they were not."""
    base_files: dict[str, Any] | None = None
    """What the base's files held, as `origin_of` returns it; None in runs that recorded nothing of it."""

    @property
    def script(self) -> str:
        """Name of the finetune script that made it: that of its method, or of what it learned from."""
        return next((script for script, flag in _FLAG_OF.items() if flag in self.training), self.method)


def load_finetuned(fabric: Fabric, checkpoint_dir: Path, run_dir: Path, quantize: str | None = None) -> tuple[GPT, Run]:
    """Returns the model of `checkpoint_dir` with the weights that a run trained by any method, and the run's record.

    Args:
        run_dir: a run's folder, or the weights file in it.
        quantize: key of QUANTIZATIONS, or `none` for no quantization, in place of the training's choice. The Run that
            is returned says what is used.

    Raises:
        UserError: no run, a damaged one, or one that was trained on another checkpoint.
    """
    run_dir = run_folder(run_dir)
    run = read_run(run_dir)
    path = trained_path(run_dir, run.method)
    if quantize is not None:
        run = replace(run, quantize=None if quantize == "none" else quantize)
    if run.method == "full":  # holds all weights of its own: the base is only checked, not loaded
        specs, get = open_state(path, "the finetune script")
        config, base_specs, get_base = open_lit(checkpoint_dir)
        require_base(run, run_dir, checkpoint_dir, digest_of(base_specs, get_base))
        with intact(path, "the finetune script"):
            model, _ = build(fabric, config, specs=specs, get=get, path=path, quantize=run.quantize, is_compared=False)
            return model, run
    trained = load_trained(path)
    _require_sizes(run, checkpoint_dir, trained, path=path)
    model, base_digest = load_base(fabric, checkpoint_dir, run.quantize)
    require_base(run, run_dir, checkpoint_dir, base_digest)
    inject, args_class = METHODS[run.method]
    inject(model, args_class(**run.method_args), init=False)
    check_fit(trained, trained_parameters(model), path)
    model.load_state_dict(trained, strict=False)
    return model, run


def _require_sizes(run: Run, checkpoint_dir: Path, trained: dict[str, Tensor], path: Path) -> None:
    """Checks that a run's weights have the sizes that its record states, before memory is taken for those.

    Args:
        path: the file of the weights, for messages.

    Raises:
        UserError: they have others.
    """
    with torch.device("meta"):
        model = GPT(read_config(checkpoint_dir))
        METHODS[run.method].inject(model, METHODS[run.method].args(**run.method_args), init=False)
    check_fit(trained, trained_parameters(model), path)


def require_base(run: Run, run_dir: Path, checkpoint_dir: Path, base_digest: str) -> None:
    """Checks that the run was trained on the weights and the configuration of this checkpoint.

    Args:
        base_digest: digest of its weights, of `load_base`, or of `digest_of` where not all of them are read.

    Raises:
        UserError: it was trained on others, or they are damaged.
    """
    require_undamaged(checkpoint_dir, base_digest, run.base_digest, run.base_files)
    if is_other(base_digest, run.base_digest):
        raise UserError(
            f"{run_dir} was trained on other weights than those of {checkpoint_dir}; "
            f"pass --checkpoint_dir {run.base}, or that folder's new place"
        )
    if run.base_files and (changes := changed_origin(origin_of(checkpoint_dir), run.base_files)):
        raise UserError(
            f"{run_dir} was trained on another checkpoint than {checkpoint_dir} is now: {'; '.join(changes.values())}; "
            f"pass --checkpoint_dir {run.base} as it was, or that folder's new place"
        )


def read_run(run_dir: Path) -> Run:
    """Returns the record of a run; prints a note on stderr if its prompt style is worded differently now.

    Raises:
        UserError: the record is missing, damaged, or names something that we do not know.
    """
    require_run(run_dir)
    path = run_dir / RUN
    record = read_record(path, _REMEDY)
    require_types(str(path), record, get_type_hints(Run), _REMEDY)
    written_by = record.get("versions", {}).get("lit_gpt")
    require_known(path, record, {f.name for f in fields(Run)}, written_by)
    if missing := [f.name for f in fields(Run) if f.name not in record and f.default is MISSING]:
        raise UserError(f"{path} is damaged (it has no {missing[0]}); {_REMEDY}")
    run = Run(**record)
    if run.method not in METHODS:
        raise UserError(f"{path} names the method {shown(run.method)}; known are {', '.join(METHODS)}")
    args_class = METHODS[run.method].args
    require_known(path, run.method_args, {f.name for f in fields(args_class)}, written_by)
    require_types(f"{path} (method_args)", run.method_args, get_type_hints(args_class), _REMEDY)
    try:
        args_class(**run.method_args)
    except UserError as e:
        raise UserError(f"{path} is damaged ({e}); {_REMEDY}") from e
    require_types(f"{path} (training)", run.training, _KINDS_OF_TRAINING, _REMEDY)
    require_types(f"{path} (data)", run.data, _KINDS_OF_DATA, _REMEDY)
    require_types(f"{path} (base_files)", run.base_files or {}, _KINDS_OF_BASE, _REMEDY)
    if run.quantize is not None and run.quantize not in QUANTIZATIONS:
        raise UserError(f"{path} names the weights {shown(run.quantize)}; known are {', '.join(QUANTIZATIONS)}")
    if message := reworded(run.data):
        say(message)
    return run


def save_run(run: Run, out_dir: Path) -> None:
    """Writes the record of a run to finetuned.json."""
    write_text(out_dir / RUN, run_text(run))


def run_text(run: Run) -> str:
    """Returns the text of finetuned.json for the record of a run."""
    record = {name: x for name, x in asdict(run).items() if x is not None or name != "base_files"}
    return json.dumps(with_format(RUN, record), indent=2, default=str) + "\n"


def versions() -> dict[str, str]:
    """Returns the versions of this toolkit, Python and the installed packages that affect results."""
    found = {"lit_gpt": __version__, "python": platform.python_version()}
    for package in ("torch", "lightning", "tokenizers", "sentencepiece", "bitsandbytes"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
