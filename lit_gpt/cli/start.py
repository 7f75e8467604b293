"""Runs a script's `main` with the command line's arguments; mistakes of the user end as one line on stderr."""

import os
import platform
import sys
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import MISSING
from io import TextIOWrapper
from typing import Any

from lit_gpt import __version__
from lit_gpt.args.command import note_command
from lit_gpt.cli.flags import arguments_of, flags_of, meaning
from lit_gpt.cli.help import config_text, help_of
from lit_gpt.cli.paths import check_paths
from lit_gpt.cli.words import Asked, read
from lit_gpt.errors import CommandLineError, UserError, one_line

_BUG = f"This is a bug of lit-gpt {__version__} and not your mistake: please report it with these lines."
_TRACEBACK = "LIT_GPT_TRACEBACK"
"""Environment variable that prints the traceback of an error above its line, unless it is 0 or empty."""
_BAR_PACE = {"TQDM_MININTERVAL": "30", "TQDM_MAXINTERVAL": "60"}
"""Seconds between two states of a progress bar, ours or of a library, that no terminal shows: they pile up in a log."""


def run(main: Callable[..., None], unchecked: Collection[str] = (), method: str | None = None) -> None:
    """Calls `main` with the arguments of the command line.

    A parameter annotated with a dataclass becomes one flag per field, without a prefix: `train: TrainArgs` gives
    `--learning_rate`. Mistakes of the user end as one line on stderr and exit code 1 (2 for the command line itself).
    Paths are checked first, before `main` imports anything heavy.

    Args:
        unchecked: flags that look like paths to read but need not exist.
        method: the method whose default run is required if --finetuned_path is not given.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # so that a log file shows each line at once
        with suppress(OSError):  # of what was a file when it was opened and is none any more
            sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a character shows its number
    if sys.stderr is None or not sys.stderr.isatty():
        for name, value in _BAR_PACE.items():
            os.environ.setdefault(name, value)
    try:
        asked = read(sys.argv[1:], flags_of(main))
        if asked.help:
            print(help_of(main), end="")
        elif asked.print_config is not None:
            print(config_text(flags_of(main), asked.values, asked.print_config), end="")
        else:
            values = _all_values(main, asked)
            arguments = arguments_of(main, values)
            check_paths(main, values, unchecked, method)
            note_command(asked.values)
            main(**arguments)
    except (Exception, KeyboardInterrupt) as e:
        code, message = _outcome(e, list(flags_of(main)))
        if message is None:
            if sys.version_info >= (3, 11):
                e.add_note(_BUG)
            raise
        if os.environ.get(_TRACEBACK, "0") not in ("", "0"):
            traceback.print_exc()
        _fail(message, code)


def parse(main: Callable[..., None], argv: list[str]) -> dict[str, Any]:
    """Returns the keyword arguments for `main` that the words `argv` stand for.

    Raises:
        CommandLineError: an unknown flag, a missing flag, or a value of another type.
        UserError: values that contradict each other (from the dataclasses' own checks).
    """
    return arguments_of(main, _all_values(main, read(argv, flags_of(main))))


def _all_values(main: Callable[..., None], asked: Asked) -> dict[str, Any]:
    """Returns a value for every flag of `main`.

    Raises:
        CommandLineError: a flag without a default was not given.
    """
    flags = flags_of(main)
    missing = [flag for flag in flags.values() if flag.default is MISSING and flag.name not in asked.values]
    if missing:
        named = [f"--{flag.name} ({meaning(main, flag) or 'see --help'})" for flag in missing]
        raise CommandLineError(f"missing {' and '.join(named)}")
    return {name: asked.values.get(name, flag.default) for name, flag in flags.items()}


def _outcome(error: BaseException, flags: list[str]) -> tuple[int, str | None]:
    """Returns the exit code and the error line: None for a bug of ours, empty if nobody reads the output any more."""
    if isinstance(error, UserError):
        return (2 if isinstance(error, CommandLineError) else 1), str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, BrokenPipeError):  # `generate/base.py ... | head`
        return 1, ""
    if isinstance(error, OSError) and (error.filename is not None or error.strerror is not None):
        where = f": {error.filename}" if error.filename else ""
        return 1, f"{error.strerror or error}{where} ({_TRACEBACK}=1 shows what wanted it)"
    if isinstance(error, ModuleNotFoundError) and error.name == "triton":  # torch ships Triton on Linux only
        return 1, "torch has no Triton here, which compiles for the GPU; pass --compile false"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "alloc_cpu" in str(error)):
        return 1, f"this machine has too little memory; {_for_less_memory(flags)}"
    if type(error).__name__ == "OutOfMemoryError":  # by name: importing torch here would make `--help` slow
        return 1, f"the GPU has too little memory ({str(error).split('. ')[0]}); {_for_less_memory(flags)}"
    return 1, None


def _for_less_memory(flags: list[str]) -> str:
    """Returns advice on how to use less memory, limited to the flags that the script has."""
    ways = {
        "recompute": "--recompute all",
        "micro_batch_tokens": "--micro_batch_tokens 1024",
        "quantize": "--quantize bnb.nf4",
        "batch_size": "a smaller --batch_size",
    }
    if "micro_batch_tokens" in flags:
        ways.pop("batch_size")
    return "try " + " or ".join([way for flag, way in ways.items() if flag in flags] or ["a smaller model"])


def _which() -> str:
    """Returns which of a run's processes this is, if it is not the first one, which speaks for all."""
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) if "WORLD_SIZE" in os.environ else "0"
    return "" if rank == "0" else f"rank {rank} on {platform.node()}: "


def _fail(message: str, code: int) -> None:
    """Prints one line on stderr, if there is something to say, and exits."""
    if message:
        print(f"error: {_which()}" + one_line(message), file=sys.stderr)
    else:
        sys.stderr.close()
    sys.exit(code)
