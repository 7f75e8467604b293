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
    seen: set[str] = set()
    todo = [*_needs("lit-gpt", []), *_OPTIONAL]
    while todo:
        requirement = todo.pop()
        name, extras = _read(requirement)
        if requirement in seen or name in _OF_THE_IMAGE or name.startswith(("nvidia-", "cuda-")):
            continue
        seen.add(requirement)
        try:
            found[name] = distribution(name).version
        except PackageNotFoundError:
            continue  # of another system or Python, or of an extra that is not installed
        todo += _needs(name, extras)
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def _needs(name: str, extras: list[str]) -> list[str]:
    """Returns the requirements of an installed package, with those of some of its extras."""
    lines = distribution(name).requires or []
    return [
        line for line in lines if "extra ==" not in line or any(re.search(rf"extra == .{e}\b", line) for e in extras)
    ]


def _read(requirement: str) -> tuple[str, list[str]]:
    """Returns the package that a requirement is for, by the name that registries write, and the extras that it asks."""
    match = re.match(r"([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?", requirement)
    if match is None:
        return "", []
    extras = [re.escape(extra.strip()) for extra in (match[2] or "").split(",") if extra.strip()]
    return re.sub(r"[-_.]+", "-", match[1]).lower(), extras
