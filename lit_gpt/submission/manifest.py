"""manifest.json: what a submission was made of, with the hash of every file, written and compared."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lit_gpt import __version__
from lit_gpt.args.folders import CONFIG as LIT_CONFIG
from lit_gpt.args.folders import WEIGHTS
from lit_gpt.args.submission import SubmissionArgs
from lit_gpt.checkpoints.configs import read_config
from lit_gpt.checkpoints.runs import versions
from lit_gpt.config import Config
from lit_gpt.errors import UserError, shown
from lit_gpt.model import GPT
from lit_gpt.records import fits, read_object
from lit_gpt.submission.commands import Repetition
from lit_gpt.submission.results import final_loss
from lit_gpt.submission.subject import Subject, contents_of_base
from lit_gpt.submission.texts import COMMAND

MANIFEST, ZIP = "manifest.json", "submission.zip"
_APART = (MANIFEST, ZIP)
"""Files of a submission that the manifest does not list."""
_FILES = dict[str, dict[str, int | str]]
"""Type of the list of files."""
_REMEDY = "make the submission again"


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_of(folder: Path) -> Iterator[str]:
    """Yields the paths of all files of a submission that the manifest lists, from its folder on, in order."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in _APART:
            yield name


def manifest(folder: Path, subject: Subject, args: SubmissionArgs, repetition: Repetition | None) -> str:
    """Returns the text of manifest.json.

    Args:
        folder: the submission, with all its other files.
        repetition: what repeats the run; None if that is left out.
    """
    run, base = subject.run, subject.checkpoint_dir
    config = read_config(base)
    kept = {name: x for name, x in run.data.items() if name not in ("folder", "checkpoint_dir", "chat_template")}
    record = {
        "format_version": 1,
        "made_by": f"lit-gpt {__version__}",
        "base": {
            "repo": subject.repo,
            "revision": subject.revision,
            "digest": run.base_digest,
            "contents": contents_of_base(base),
            "parameters": _n_parameters(config),
            "kv_bytes_per_token": 2 * sum(heads * n for i in range(config.n_layer) for heads, n in config.cached(i)),
            "serve_quantize": args.serve_quantize,
            "sha256": {name: sha256_of(base / name) for name in (WEIGHTS, LIT_CONFIG)},
        },
        "run": {
            "method": run.method,
            "method_args": run.method_args,
            "prompt_style": run.prompt_style,
            "quantize": run.quantize,
            "training": run.training,
            "seed": run.training.get("seed"),
            "val_loss": final_loss(subject.run_dir),
            "sha256": {subject.trained.name: sha256_of(subject.trained)},
        },
        "data": {
            **kept,
            "sha256": {name: sha256_of(path) for name, path in (repetition.files if repetition else {}).items()},
        },
        "versions": {"run": run.versions, "here": versions()},
        "commands": {
            "prepare": repetition.prepare if repetition else None,
            "finetune": repetition.config if repetition else None,
            "serve": list(COMMAND),
        },
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
            for name in files_of(folder)
        },
    }
    return json.dumps(record, indent=2, default=str) + "\n"


def _n_parameters(config: Config) -> int:
    """Returns the number of a model's parameters, without making it."""
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(config).parameters())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a submission; raises UserError if there is none, or a damaged one."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} has no {MANIFEST}: it is no submission of scripts/prepare_submission.py")
    found = read_object(path, _REMEDY)
    for key in ("base", "run", "data", "files"):
        if not isinstance(found.get(key), dict):
            raise UserError(f"{path}: {key} is {shown(found.get(key))}; {_REMEDY}")
    if not fits(_FILES, found["files"]):
        raise UserError(f"{path}: files are not names with bytes and sha256; {_REMEDY}")
    return found


def compare_files(folder: Path, found: dict[str, Any]) -> tuple[int, int]:
    """Compares all files with their hashes, and returns their number and bytes.

    Raises:
        UserError: one is missing, changed, or not in the manifest; the message names the first.
    """
    listed, there = found["files"], set(files_of(folder))
    for name in sorted(listed.keys() - there):
        raise UserError(f"{folder / name} is missing; {_REMEDY}")
    for name in sorted(there - listed.keys()):
        raise UserError(f"{folder / name} is not in {MANIFEST}: it came later; take it out, or {_REMEDY}")
    for name, facts in listed.items():
        path = folder / name
        if path.stat().st_size != facts.get("bytes") or sha256_of(path) != facts.get("sha256"):
            raise UserError(f"{path} is not what {MANIFEST} says: it was changed since; {_REMEDY}")
    return len(listed), sum((folder / name).stat().st_size for name in listed)
