"""Checks a submission from its files to the two hours of its evaluation, and says after each step what was seen."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lit_gpt.args.submission import CheckArgs
from lit_gpt.errors import UserError
from lit_gpt.planning.devices import named
from lit_gpt.records import read_yaml
from lit_gpt.submission.check import docker
from lit_gpt.submission.check.dockerfile import only_dockerfile, read_steps, start_command
from lit_gpt.submission.check.helm import replay
from lit_gpt.submission.check.load import (
    ENTRIES,
    THREADS,
    Load,
    evaluation_seconds,
    measure,
    planned_seconds,
    require_memory,
)
from lit_gpt.submission.check.server import Running, started, wait
from lit_gpt.submission.check.steps import carried_out
from lit_gpt.submission.check.words import commands_of, misfit
from lit_gpt.submission.manifest import compare_files, read_manifest
from lit_gpt.submission.prepare import require_no_secrets
from lit_gpt.submission.texts import CONFIG, DOCKERFILE_TRAIN, TRAIN
from lit_gpt.submission.toolkit import TOOLKIT

_Say = Callable[[str], None]


def check_submission(folder: Path, args: CheckArgs, allow_secrets: tuple[str, ...] = (), say: _Say = print) -> None:
    """Does with a submission what the organizers do, and says of each step what came of it.

    Args:
        allow_secrets: files that are not searched for secrets.
        say: gets a line at a time.

    Raises:
        UserError: the first step that fails.
    """
    device = named(args.device) if args.device else None
    with _step("files", say) as told:
        found = read_manifest(folder)
        n, n_bytes = compare_files(folder, found)
        told(f"{n} files, {n_bytes / 1e6:,.1f} MB, as the manifest has them")
    with _step("secrets", say) as told:
        require_no_secrets(folder, allow_secrets)
        told("none that detect-secrets knows")
    with _step("Dockerfile", say) as told:
        dockerfile = only_dockerfile(folder)
        steps = read_steps(dockerfile)
        command = start_command(dockerfile, steps)
        told(f"{len(steps)} instructions; starts {' '.join(command)}")
    _check_training(folder, say)
    with ExitStack() as stack:
        server = _built(folder, dockerfile, command, found=found, args=args, say=say, stack=stack)
        with _step("ready", say) as told:
            seconds, answer = wait(server, args.ready_minutes)
            told(f"after {seconds:.1f} s; the health check was answered in {answer['request_time']:.2f} s")
        with _step("HELM", say) as told:
            told(f"{replay(server.ask)} requests of its client, answered as it needs them")
        with _step("load", say) as told:
            loads = measure(server.ask, args.load_requests)
            told(f"{args.load_requests} requests of each kind, {THREADS} at once: {_shown(loads)}")
        with _step("memory", say) as told:
            taken = server.memory()
            here = "unknown" if taken is None else f"at most {taken / 1e9:.2f} GB here"
            told(here + (f"; {require_memory(found['base'], device)}" if device else ""))
        with _step("evaluation", say) as told:
            told(evaluation(loads, found["base"], args))


@contextmanager
def _step(name: str, say: _Say) -> Iterator[_Say]:
    """Says a line of the table for a step that passed; names the step in what it raises if it fails."""
    said: list[str] = []
    try:
        yield said.append
    except UserError as e:
        say(f"{name:<12} FAILED")
        raise UserError(f"{name}: {e}") from e
    say(f"{name:<12} {said[0] if said else 'ok'}")
    for line in said[1:]:
        say(f"{'':<12} {line}")


def _check_training(folder: Path, say: _Say) -> None:
    """Checks what trains the model again, without training it: its files, and that the scripts take their arguments."""
    if not (folder / DOCKERFILE_TRAIN).exists() and not (folder / TRAIN).exists():
        say(f"{'training':<12} left out of the submission; finalists have to hand it in")
        return
    with _step("training", say) as told:
        steps = read_steps(folder / DOCKERFILE_TRAIN)
        script = folder / TRAIN
        if not script.is_file():
            raise UserError(f"{script} is missing; make the submission again")
        done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{script} is no shell script: {done.stderr.strip().splitlines()[0]}")
        n = _require_commands(folder, script.read_text(encoding="utf-8"))
        told(f"{DOCKERFILE_TRAIN} has {len(steps)} instructions; bash takes {TRAIN}, and the toolkit its {n} commands")


def _require_commands(folder: Path, text: str) -> int:
    """Checks that the scripts of a submission take the flags that its train.sh gives them; returns their number.

    Raises:
        UserError: a script is not there, or knows a flag or a value not.
    """
    commands = list(commands_of(text))
    for words in commands:
        script = folder / words[0]
        if not script.is_file():
            raise UserError(f"{TRAIN} runs {words[0]}, which is not in {folder}")
        if (why := misfit(script, words[1:], folder)) is not None:
            raise UserError(f"{TRAIN}: {words[0]} does not take its arguments: {why}")
    if not any(words[0].startswith(f"{TOOLKIT}/finetune/") for words in commands):
        raise UserError(f"{TRAIN} runs no finetune script")
    if (folder / CONFIG).is_file():
        read_yaml(folder / CONFIG, "make the submission again")
    return len(commands)


def _built(
    folder: Path,
    dockerfile: Path,
    command: list[str],
    *,
    found: dict[str, Any],
    args: CheckArgs,
    say: _Say,
    stack: ExitStack,
) -> Running:
    """Builds a submission, with docker or without, and starts it; what was made goes when the stack is left."""
    builder, why = docker.builder_of(args.builder)
    tag = f"submission-check-{os.getpid()}"
    with _step("build", say) as told:
        if builder is not None:
            tags = [tag, f"{tag}-train"]
            stack.callback(docker.remove, builder, tags)
            docker.build(builder, folder, dockerfile.name, tag)
            if (folder / DOCKERFILE_TRAIN).is_file():
                docker.build(builder, folder, DOCKERFILE_TRAIN, tags[1])
            server = stack.enter_context(docker.container(builder, tag))
            told(f"with {builder}, and started")
            return server
        base = Path(args.base_dir) if args.base_dir else None
        made = carried_out(dockerfile, base_dir=base, contents=found["base"].get("contents"), fetch=args.fetch)
        built = stack.enter_context(made)
        server = stack.enter_context(started(built, command))
        told(f"no image ({why}): {built.done} steps were carried out in a folder, and these were not:")
        for line in built.left_out:
            told(f"- {line}")
        told("- CMD: on a free port of 127.0.0.1 instead of port 80 of all addresses")
        return server


def _shown(loads: list[Load]) -> str:
    """Returns what each kind of request took."""
    return ", ".join(f"{load.kind} {load.seconds:.2f} s" for load in loads)


def evaluation(loads: list[Load], model: dict[str, Any], args: CheckArgs) -> str:
    """Returns how long the sample evaluation takes; raises UserError if that is too long on the planned device."""
    n = args.eval_instances * sum(ENTRIES.values())
    here = evaluation_seconds(loads, args.eval_instances)
    text = f"{n:,} requests ({args.eval_instances} instances an entry) take {_hours(here)} at this machine's pace"
    planned: float | None = here
    if args.device:
        device = named(args.device)
        planned = planned_seconds(loads, args.eval_instances, model, device)
        if planned is None:
            return f"{text}; nobody knows the pace of {device.name}"
        text += f", and about {_hours(planned)} on {device.name} (estimate)"
    if planned > 3600 * args.eval_hours:
        raise UserError(f"{text}, and {args.eval_hours:g} h are allowed")
    return f"{text}; {args.eval_hours:g} h are allowed"


def _hours(seconds: float) -> str:
    """Returns a duration in the unit that one thinks of it in."""
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 3600
        else f"{seconds / 60:.1f} min"
        if seconds >= 60
        else f"{seconds:.0f} s"
    )
