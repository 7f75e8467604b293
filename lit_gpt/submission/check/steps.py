"""Carries out the steps of a Dockerfile without Docker: in a temporary folder and a Python environment of its own.

What a step does to the image, it does to the folder. Only these steps are carried out: ENV, WORKDIR, COPY, and RUN of
pip, of a Python script that lies in the folder, or of `rm -rf` of what does; several may be joined by `&&`. Whatever
else a RUN says is not, since it would be done to this very machine. What was not carried out is listed, with the
reason.
"""

import os
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from lit_gpt.args.folders import WEIGHTS, require_checkpoint
from lit_gpt.errors import UserError, one_line
from lit_gpt.files import remove
from lit_gpt.submission.check.dockerfile import Step, copied, read_steps, variables
from lit_gpt.submission.subject import contents_of_base

_OPERATORS = "&|;<>$`*(){}"
"""Characters that only a shell understands."""
_DOWNLOAD = "download.py"
"""The script that fetches the base."""
_LINKED = 50 * 2**20
"""Bytes from which a file is linked instead of copied."""
_PATIENCE = 3 * 3600
"""Seconds that a step may take."""


@dataclass
class Built:
    """A folder that stands for an image, and what was done and not done to make it."""

    root: Path
    """The folder that stands for / of the image."""
    python: Path
    """The interpreter of the image's environment."""
    workdir: PurePosixPath = field(default_factory=lambda: PurePosixPath("/"))
    env: dict[str, str] = field(default_factory=dict)
    done: int = 0
    left_out: list[str] = field(default_factory=list)
    """Steps that were not carried out, with the reason."""

    def at(self, path: str | PurePosixPath = ".") -> Path:
        """Returns the place of a path of the image."""
        return self.root / (self.workdir / path).relative_to("/")

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of what runs in the image."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        return kept | self.env | {"PATH": f"{self.python.parent}{os.pathsep}{kept.get('PATH', '')}"}


@contextmanager
def carried_out(dockerfile: Path, *, base_dir: Path | None, contents: str | None, fetch: bool) -> Iterator[Built]:
    """Carries out the steps of a Dockerfile; what they made is there until the block ends.

    Args:
        base_dir: folder of the converted base, which stands for its download.
        contents: hash of the base's weights, by which `base_dir` is known.
        fetch: carry out what needs a network, too.

    Raises:
        UserError: a step fails, or the model cannot be had; the message names the step.
    """
    steps = read_steps(dockerfile)
    _require_base(dockerfile, steps, base_dir=base_dir, contents=contents, fetch=fetch)
    with TemporaryDirectory(prefix="submission-") as folder:
        built = Built(Path(folder) / "root", _environment(Path(folder) / "env"))
        built.root.mkdir()
        for step in steps:
            try:
                _carry_out(built, step, dockerfile=dockerfile, base_dir=base_dir, fetch=fetch)
            except OSError as e:
                raise UserError(f"{dockerfile}, line {step.line}: {step}: {e.strerror or e}") from e
        yield built


def _environment(folder: Path) -> Path:
    """Makes a Python environment, with the packages of this one beneath its own, and returns its interpreter."""
    venv.create(folder)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / Path(sys.executable).name
    python = python if python.exists() else python.with_name("python")
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    place = next(folder.rglob("site-packages"))
    (place / "borrowed.pth").write_text("\n".join(packages) + "\n", encoding="utf-8")
    return python


def _require_base(
    dockerfile: Path, steps: list[Step], *, base_dir: Path | None, contents: str | None, fetch: bool
) -> None:
    """Checks that the base is there which an image would download; raises UserError before anything is carried out."""
    runs = [step for step in steps if step.instruction == "RUN" and not _needs_shell(step)]
    wanted = next((step for step in runs if any(_script(c) == _DOWNLOAD for c in _commands(step))), None)
    if wanted is None or (base_dir is None and fetch):
        return
    if base_dir is None:
        raise UserError(f"{dockerfile}, line {wanted.line}: the image downloads the base, and nothing is downloaded "
                        "here; pass the converted base as --base_dir, or --fetch true")  # fmt: skip
    require_checkpoint(base_dir)
    if contents is not None and contents_of_base(base_dir) != contents:
        raise UserError(f"--base_dir {base_dir} has other weights in {WEIGHTS} than the base of the run")


def _needs_shell(step: Step) -> bool:
    """Returns whether a RUN is more than commands that are joined by `&&`."""
    return any(c in step.value.replace("&&", "") for c in _OPERATORS)


def _commands(step: Step) -> list[str]:
    """Returns the commands of a RUN."""
    return [command.strip() for command in step.value.split("&&")]


def _script(command: str) -> str | None:
    """Returns the file name of the Python script that a command runs; None if it runs none."""
    words = shlex.split(command)
    return PurePosixPath(words[1]).name if len(words) > 1 and words[0] in ("python", "python3") else None


def _carry_out(built: Built, step: Step, *, dockerfile: Path, base_dir: Path | None, fetch: bool) -> None:
    """Carries out one step, or notes why not."""
    if step.instruction == "ENV":
        built.env |= variables(dockerfile, step)
    elif step.instruction == "WORKDIR":
        built.workdir = built.workdir / step.value.strip()
        built.at().mkdir(parents=True, exist_ok=True)
    elif step.instruction == "COPY":
        _copy(built, *copied(dockerfile, step), context=dockerfile.parent)
    elif step.instruction == "RUN":
        _run(built, step, dockerfile=dockerfile, base_dir=base_dir, fetch=fetch)
        return
    elif step.instruction == "FROM":
        built.left_out.append(f"{step}: the packages of this machine's Python stand for the image's")
        return
    elif step.instruction not in ("CMD", "ENTRYPOINT", "EXPOSE", "LABEL", "MAINTAINER"):
        built.left_out.append(f"{step}: not known here")
        return
    built.done += 1


def _copy(built: Built, sources: list[str], target: str, context: Path) -> None:
    """Copies as Docker does: of a folder what is in it; a file into a folder, or under the target's name."""
    place = built.at(target)
    for source in sources:
        path = context / source
        if path.is_dir():
            for inner in path.rglob("*"):
                if inner.is_file():
                    _place(inner, place / inner.relative_to(path))
        else:
            _place(path, place / path.name if target.endswith(("/", ".")) or place.is_dir() else place)


def _place(path: Path, target: Path) -> None:
    """Copies a file, or links it if it is large and lies on the same disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.stat().st_size >= _LINKED:
        try:
            os.link(path.resolve(), target)
            return
        except OSError:
            pass
    shutil.copyfile(path, target)


def _run(built: Built, step: Step, *, dockerfile: Path, base_dir: Path | None, fetch: bool) -> None:
    """Carries out the commands of a RUN that are known to stay in the folder, and notes why not of others."""
    if _needs_shell(step):
        built.left_out.append(f"{step}: a shell's command, which could change this machine")
        return
    where = f"{dockerfile}, line {step.line}"
    for command in _commands(step):
        _run_one(built, Step("RUN", command, step.line), where=where, base_dir=base_dir, fetch=fetch)


def _run_one(built: Built, step: Step, *, where: str, base_dir: Path | None, fetch: bool) -> None:
    """Carries out one command, or notes why not."""
    words = shlex.split(step.value)
    if any(word.startswith("/") or ".." in PurePosixPath(word).parts for word in words):
        built.left_out.append(f"{step}: a path outside of the folder, which here is one of this machine")
        return
    script = _script(step.value)
    if words[:2] == ["rm", "-rf"] and len(words) > 2 and all(built.at(word) != built.at() for word in words[2:]):
        for word in words[2:]:
            remove(built.at(word))
        built.done += 1
    elif words[:2] == ["pip", "install"]:
        _install(built, step, words, fetch=fetch, where=where)
    elif script == _DOWNLOAD and base_dir is not None:
        name = words[words.index("--repo_id") + 1]
        for path in filter(Path.is_file, base_dir.iterdir()):
            _place(path, built.at(f"checkpoints/{name}") / path.name)
        built.left_out.append(f"{step}: --base_dir {base_dir} stands for it")
    elif script == "convert_hf_checkpoint.py" and base_dir is not None:
        built.left_out.append(f"{step}: --base_dir is converted")
    elif script is not None and (built.at(words[1])).is_file():
        _call(built, [str(built.python), *words[1:]], where, step)
    else:
        built.left_out.append(f"{step}: no script of the folder")


def _install(built: Built, step: Step, words: list[str], *, fetch: bool, where: str) -> None:
    """Installs what pip is asked for: all of it from the network, or only what lies in the folder."""
    if fetch:
        _call(built, [str(built.python), "-m", "pip", *words[1:]], where, step)
        return
    local = [word.partition("[")[0] for word in words[2:] if word.startswith("./")]
    for path in local:
        if not (built.at(path) / "pyproject.toml").is_file():
            raise UserError(f"{where}: {step}: there is no package in {path}")
        flags = ["--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--quiet"]
        flags.append("--disable-pip-version-check")
        _call(built, [str(built.python), "-m", "pip", "install", *flags, path], where, step)
    built.left_out.append(
        f"{step}: its requirements; the packages of this machine stand for them (--fetch true installs)"
    )


def _call(built: Built, command: list[str], where: str, step: Step) -> None:
    """Runs a command in the image's folder; raises UserError with its last line if it fails."""
    done = subprocess.run(
        command, cwd=built.at(), env=built.environment, capture_output=True, text=True, timeout=_PATIENCE, check=False
    )
    if done.returncode:
        raise UserError(f"{where}: {step} failed: {last_words(done.stdout + done.stderr)}")
    built.done += 1


def last_words(text: str) -> str:
    """Returns the line of what a program said that tells what went wrong, or its last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "error: " in line.lower()]
    return one_line((told or lines or ["it said nothing"])[-1], 400)
