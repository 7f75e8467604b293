"""Packs a run as a submission: a folder that is written whole or not at all, and nothing beside it."""

import shlex
import shutil
import sys
import zipfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_gpt.args.folders import CONFIG as LIT_CONFIG
from lit_gpt.args.folders import WEIGHTS
from lit_gpt.args.submission import RefusalArgs, SubmissionArgs
from lit_gpt.checkpoints.runs import Run, save_run
from lit_gpt.errors import UserError
from lit_gpt.files import only_writer, replace_folder
from lit_gpt.merge.write import write_merged
from lit_gpt.submission import texts
from lit_gpt.submission.commands import DATA, PREPARED, Repetition, config_text, repetition_of
from lit_gpt.submission.manifest import MANIFEST, ZIP, files_of, manifest
from lit_gpt.submission.rules import is_instructed
from lit_gpt.submission.secrets import find_secrets
from lit_gpt.submission.subject import Subject, read_subject, refuse
from lit_gpt.submission.toolkit import TOOLKIT, pack_toolkit, pins

_PROSE = (f"{TOOLKIT}/", f"{DATA}/", f"{texts.MODEL}/")
"""Beginnings of paths where a word such as `password` means nothing."""
_MB = 1e6
_PYTHON = (3, 11)
"""Version of Python in the base image that is the default."""


def prepare_submission(
    finetuned_path: Path, checkpoint_dir: Path | None, output_dir: Path, args: SubmissionArgs, refusals: RefusalArgs
) -> list[str]:
    """Writes a submission to `output_dir`, whole or not at all.

    Args:
        checkpoint_dir: folder of the run's base; where the run says it was if None.

    Returns:
        Lines that say what is in it, and what whoever submits it has to know.

    Raises:
        UserError: the run cannot be submitted, by itself or by the challenge's rules; nothing is written.
    """
    subject = read_subject(finetuned_path, checkpoint_dir, args)
    refuse(subject, refusals)
    if args.weights == "fetch" or args.train_image:
        _require_download(subject)
    base = texts.folder_of_base(subject)
    repetition = repetition_of(subject.run, base, args.prepare_command) if args.train_image else None
    subject = replace(subject, run=_portable(subject.run, base, repetition))
    said: list[str] = []

    def write(folder: Path) -> None:
        said.extend(_write(folder, subject, args=args, repetition=repetition))
        require_no_secrets(folder, refusals.allow_secrets)
        (folder / MANIFEST).write_text(manifest(folder, subject, args, repetition), encoding="utf-8")
        _require_size(folder, refusals.max_mb)
        if args.zip:
            _write_zip(folder)

    with only_writer(output_dir):
        replace_folder(output_dir, write, args.overwrite)
    n_bytes = sum(p.stat().st_size for p in output_dir.rglob("*") if p.is_file())
    check = ["scripts/check_submission.py", "--submission_dir", str(output_dir)]
    if args.weights == "fetch":
        check += ["--base_dir", str(subject.checkpoint_dir)]
    first = f"Saved the submission to {output_dir} ({n_bytes / _MB:,.1f} MB)"
    return [first, *said, f"next: python {shlex.join(check)} --device a100-40gb"]


def _require_download(subject: Subject) -> None:
    """Checks that the images can download the base that the run was trained on; raises UserError if they cannot."""
    if subject.repo is None:
        raise UserError(f"{subject.checkpoint_dir} does not say which model of the hub it is; pass --base_repo "
                        "org/name, or --weights copy --train_image false")  # fmt: skip
    if subject.other_file is not None:
        raise UserError(
            f"the base was converted from {subject.other_file}, and the weights of {subject.repo} on the hub are not "
            "those of that file, so that no image could use them; pass --base_repo org/name if a repository has the "
            "file, or --weights copy --train_image false"
        )


_PATHS = ("sft_run", "checker_file", "best_task_data", "best_task_path")
"""Flags of training that name a place on this machine."""


def _portable(run: Run, base: str, repetition: Repetition | None) -> Run:
    """Returns the record of a run with the paths of the images in place of those of this machine."""
    data = {name: x for name, x in run.data.items() if name != "command"}
    data |= {"folder": f"{PREPARED}/data", "checkpoint_dir": base}
    names = {str(path): name for name, path in (repetition.files if repetition else {}).items()}

    def without_folders(entries: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
        """Returns entries with those that are paths as the images have them, or by their last part."""
        return {n: names.get(str(x), Path(str(x)).name) if n in keys and x else x for n, x in entries.items()}

    data = without_folders(data, ("source", "validation_source"))
    if isinstance(mix := data.get("mix"), dict):
        sources = {n: without_folders(entry, ("path", "source")) for n, entry in mix.get("sources", {}).items()}
        data["mix"] = mix | {"sources": sources}
        data["source"] = ", ".join(str(entry.get("path")) for entry in sources.values())
    return replace(run, base=base, data=data, training=without_folders(run.training, _PATHS))


def _write(folder: Path, subject: Subject, *, args: SubmissionArgs, repetition: Repetition | None) -> list[str]:
    """Writes all files but the manifest and the archive; returns what is to be said."""
    text, unknown = texts.notes(subject, args)
    files = {
        texts.DOCKERFILE: texts.dockerfile(subject, args),
        texts.MAIN: texts.main_py(subject, args),
        texts.PINS: pins(),
        texts.NOTES: text,
        ".dockerignore": f"{ZIP}\n",
    }
    if repetition is not None:
        files[texts.DOCKERFILE_TRAIN] = texts.dockerfile_train(subject, args, repetition)
        files[texts.TRAIN] = texts.train_sh(subject, args, repetition)
        files[texts.CONFIG] = config_text(repetition)
        for name, path in repetition.files.items():
            _copy(path, folder / name)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    pack_toolkit(folder / TOOLKIT)
    said = _write_weights(folder, subject, args)
    if args.base_digest is None and "@" not in args.base_image:
        said.append(f"note: the base image {args.base_image} is pinned by its tag only; --base_digest pins it")
    if subject.revision is None and args.weights == "fetch":
        said.append("note: the base is fetched from the main branch; --base_revision names a commit. Other weights "
                    "than those of the training end the build")  # fmt: skip
    if subject.repo and is_instructed(subject.repo):
        said.append(
            f"note: the challenge takes bases without instruction tuning, and by its name {subject.repo} has had one"
        )
    here = sys.version_info[:2]
    if here != _PYTHON and args.base_image == SubmissionArgs().base_image:
        said.append(f"note: {texts.PINS} has the packages of Python {here[0]}.{here[1]}, and the base image has Python "
                    f"{_PYTHON[0]}.{_PYTHON[1]}; where it has none of these versions, the build says so")  # fmt: skip
    if unknown:
        said.append(f"note: {texts.NOTES} does not know all licenses; pass {' and '.join(unknown)}")
    return said


def _write_weights(folder: Path, subject: Subject, args: SubmissionArgs) -> list[str]:
    """Writes the run, or the merged model, or the base beside the run; returns lines on the merge's chat template."""
    run_dir = folder / texts.RUN_FOLDER
    if args.weights == "fetch" or not subject.is_merged:
        _copy(subject.trained, run_dir / subject.trained.name)
        save_run(subject.run, run_dir)
    if args.weights == "fetch":
        return []
    model = folder / texts.MODEL
    if subject.is_merged:
        return write_merged(
            subject.checkpoint_dir, subject.run_dir, run=subject.run, out_dir=model, base=args.merge_base
        )
    for path in subject.checkpoint_dir.iterdir():
        if path.name in (WEIGHTS, LIT_CONFIG) or path.suffix in (".json", ".jinja") or path.name == "tokenizer.model":
            _copy(path, model / path.name)
    return []


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def require_no_secrets(folder: Path, allowed: tuple[str, ...]) -> None:
    """Checks that no file of a submission looks as if it held a secret; raises UserError for the first one."""
    for secret in find_secrets(folder, files_of(folder), allowed, _PROSE):
        raise UserError(f"{secret.path}, line {secret.line}, looks like a secret ({secret.kind}), which everybody "
                        f"would read; take it out, or pass --allow_secrets {secret.path} if it is none")  # fmt: skip


def _require_size(folder: Path, max_mb: float) -> None:
    """Checks that a submission is not too large; raises UserError, with its largest file, if it is."""
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if sum(sizes.values()) > max_mb * _MB:
        largest = max(sizes, key=lambda path: sizes[path])
        raise UserError(
            f"the submission has {sum(sizes.values()) / _MB:,.1f} MB, of which {largest.relative_to(folder)} has "
            f"{sizes[largest] / _MB:,.1f}, and --max_mb is {max_mb:g}; --weights fetch packs no base, or raise --max_mb"
        )


def _write_zip(folder: Path) -> None:
    """Writes all files of a submission to submission.zip in it, with the same bytes for the same files."""
    names = [*files_of(folder), MANIFEST]
    with zipfile.ZipFile(folder / ZIP, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, (2023, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with (folder / name).open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)
