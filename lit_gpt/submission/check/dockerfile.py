"""Reads a Dockerfile as a list of steps, and checks what can be told without building it."""

import io
import shlex
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lit_gpt.errors import UserError, shown
from lit_gpt.records import parse_json

_KNOWN = ("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER")
_KNOWN += ("ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR")
"""The instructions that Dockerfiles have."""


class Step(NamedTuple):
    """An instruction of a Dockerfile."""

    instruction: str
    value: str
    line: int

    def __str__(self) -> str:
        text = f"{self.instruction} {' '.join(self.value.split())}"
        return text if len(text) <= 90 else f"{text[:87]}..."


def read_steps(path: Path) -> list[Step]:
    """Returns the steps of a Dockerfile.

    Raises:
        UserError: it is missing, has no FROM, has an instruction that Docker does not know or one without a value, or
            copies what is not there.
    """
    try:
        from dockerfile_parse import DockerfileParser
    except ModuleNotFoundError as e:
        raise UserError('Dockerfiles are read by dockerfile-parse; run: pip install -e ".[serve,submit]"') from e
    if not path.is_file():
        raise UserError(f"{path} is missing; make the submission again")
    file: Any = io.BytesIO(path.read_bytes())  # bytes are what it reads, whatever its annotation says
    parser = DockerfileParser(fileobj=file, env_replace=False)
    steps = [Step(s["instruction"], s["value"], s["startline"] + 1) for s in parser.structure]
    steps = [step for step in steps if step.instruction != "COMMENT"]
    for step in steps:
        if step.instruction not in _KNOWN:
            raise UserError(f"{path}, line {step.line}: Docker has no instruction {shown(step.instruction)}")
        if not step.value.strip():
            raise UserError(f"{path}, line {step.line}: {step.instruction} has no value")
    if next((step.instruction for step in steps if step.instruction != "ARG"), None) != "FROM":
        raise UserError(f"{path} does not begin with FROM and a base image")
    for step in steps:
        if step.instruction in ("COPY", "ADD"):
            _require_sources(path, step)
    return steps


def _require_sources(path: Path, step: Step) -> None:
    """Checks that what a step copies is in the folder of the Dockerfile; raises UserError if it is not."""
    sources, _ = copied(path, step)
    for source in sources:
        inside = PurePosixPath(source)
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(f"{path}, line {step.line}: {step.instruction} {source} is outside of the folder")
        if not (path.parent / inside).exists():
            raise UserError(f"{path}, line {step.line}: there is no {source} to copy")


def copied(path: Path, step: Step) -> tuple[list[str], str]:
    """Returns what a COPY or ADD copies, and where to; raises UserError if the step says neither."""
    words = _listed(step.value) or [word for word in _words(path, step) if not word.startswith("--")]
    if len(words) < 2:
        raise UserError(f"{path}, line {step.line}: {step.instruction} {step.value} says not what goes where")
    return words[:-1], words[-1]


def variables(path: Path, step: Step) -> dict[str, str]:
    """Returns the variables that an ENV sets, in either of its forms."""
    words = _words(path, step)
    if "=" not in words[0]:
        return {words[0]: " ".join(words[1:])}
    return dict(word.split("=", 1) for word in words if "=" in word)


def start_command(path: Path, steps: list[Step]) -> list[str]:
    """Returns the command that a container of the image starts.

    Raises:
        UserError: there is none, or it does not answer on port 80 of all addresses, where the organizers ask.
    """
    parts = {
        s.instruction: _listed(s.value) or _words(path, s) for s in steps if s.instruction in ("ENTRYPOINT", "CMD")
    }
    words = parts.get("ENTRYPOINT", []) + parts.get("CMD", [])
    if not words:
        raise UserError(f"{path} has no CMD: the image would start nothing")
    for flag, value in (("--host", "0.0.0.0"), ("--port", "80")):
        given = words[words.index(flag) + 1 : words.index(flag) + 2] if flag in words else []
        if given != [value]:
            raise UserError(f"{path}: {shlex.join(words)} has not {flag} {value}, where the organizers ask")
    return words


def only_dockerfile(folder: Path) -> Path:
    """Returns the Dockerfile of a submission; raises UserError if there is none, or a second one."""
    found = sorted(folder.rglob("Dockerfile"))
    if (folder / "Dockerfile") not in found:
        raise UserError(f"{folder} has no Dockerfile; make the submission again")
    for other in found:
        if other.parent != folder:
            raise UserError(
                f"{other} is a second Dockerfile, and the organizers take the first that they find; remove it"
            )
    return folder / "Dockerfile"


def _listed(value: str) -> list[str]:
    """Returns the words of a value in JSON's form; none if it has another form."""
    try:
        found = parse_json(value, "the value")
    except UserError:
        return []
    return found if isinstance(found, list) and all(isinstance(word, str) for word in found) else []


def _words(path: Path, step: Step) -> list[str]:
    """Returns the words of a value as a shell has them; raises UserError if quotes are left open."""
    try:
        return shlex.split(step.value)
    except ValueError as e:
        raise UserError(f"{path}, line {step.line}: {step.instruction} is no command ({str(e).lower()})") from e
