"""Puts this toolkit itself into a submission, so that its images need nothing of it that could change."""

import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import lit_gpt
from lit_gpt.errors import UserError

TOOLKIT = "lit-gpt"
"""Folder of a submission that holds the toolkit."""
_FILES = ("pyproject.toml", "README.md")
_FOLDERS = ("lit_gpt", "scripts", "finetune")
_OF_THE_IMAGE = ("torch", "torchvision", "torchaudio", "triton", "setuptools", "pip", "lit-gpt")
"""Packages that the base image brings, or that are in the folder."""
_OPTIONAL = ("fastapi", "uvicorn", "prometheus_client", "bitsandbytes", "datasets")
"""Packages of the extras that an image may ask for."""


def pack_toolkit(folder: Path) -> None:
    """Copies what the images need of this clone to `folder`; raises UserError if it is none."""
    root = Path(lit_gpt.__file__).resolve().parent.parent
    missing = [name for name in (*_FILES, *_FOLDERS) if not (root / name).exists()]
    if missing:
        raise UserError(f"{root} has no {missing[0]}: a submission packs the toolkit from a clone of its repository")
    for name in _FILES:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, folder / name)
    for name in _FOLDERS:
        for path in _sources(root / name):
            target = folder / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _sources(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder of the toolkit, but for what Python and editors leave there."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in parts):
            yield path


def pins() -> str:
    """Returns the versions of the packages that the toolkit needs and that are installed here, a line each.

    Torch is left out, with what only it needs: it comes with the base image. A package too many does no harm, since
    pip installs none of them for that.
    """
    found: dict[str, str] = {}
    todo = [*(distribution("lit-gpt").requires or []), *_OPTIONAL]
    while todo:
        name = _name_of(todo.pop())
        if name in found or name in _OF_THE_IMAGE or name.startswith(("nvidia-", "cuda-")):
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue  # of an extra that is not installed
        found[name] = installed.version
        todo += [line for line in installed.requires or [] if "extra ==" not in line]
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def _name_of(requirement: str) -> str:
    """Returns the name of the package that a requirement is for, as registries write it."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""
