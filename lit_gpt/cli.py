"""A function's signature as a command line: flat flags, `--config file.yaml`, `--print_config`."""

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from lit_gpt.errors import UserError


def run(main: Callable[..., None]) -> None:
    """Call `main` with arguments from the command line.

    Parameters annotated with a dataclass become one flag a field, without a prefix: `train: TrainArgs` gives
    `--learning_rate`. Mistakes of the user end as one line on stderr and exit code 1 (2 for the command line itself).
    """
    sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line when it is written
    try:
        arguments = parse(main, sys.argv[1:])
        main(**arguments)
    except ArgumentError as e:
        fail(one_line(e, main), code=2)
    except UserError as e:
        fail(str(e))
    except BrokenPipeError:  # `generate/base.py ... | head`
        sys.stderr.close()
        sys.exit(1)
    except OSError as e:
        if e.filename is None and e.strerror is None:
            raise
        where = f": {e.filename}" if e.filename else ""
        fail(f"{e.strerror or e}{where}")
    except RuntimeError as e:
        if "alloc_cpu" in str(e):
            fail(f"this machine has too little memory; {for_less_memory(flag_names(main))}")
        if type(e).__name__ != "OutOfMemoryError":  # torch's own; its import would cost `--help` seconds
            raise
        fail(f"the GPU has too little memory ({str(e).split('. ')[0]}); {for_less_memory(flag_names(main))}")
    except KeyboardInterrupt:
        fail("interrupted", code=130)


def for_less_memory(flags: list[str]) -> str:
    """What to try, of what the script has."""
    ways = {
        "recompute": "--recompute all",
        "micro_batch_tokens": "--micro_batch_tokens 1024",
        "quantize": "--quantize bnb.nf4",
        "batch_size": "a smaller --batch_size",
    }
    if "micro_batch_tokens" in flags:
        ways.pop("batch_size")
    return "try " + " or ".join([way for flag, way in ways.items() if flag in flags] or ["a smaller model"])


def fail(message: str, code: int = 1) -> None:
    """Print one line to stderr and exit."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def parse(main: Callable[..., None], argv: list[str]) -> dict[str, Any]:
    """The keyword arguments for `main` that `argv` stands for.

    Raises:
        ArgumentError: unknown flag, missing flag, or a value of another type.
        UserError: values that contradict each other (from the dataclasses' own checks).
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the text under a dataclass field is its help
    parser = ArgumentParser(
        exit_on_error=False, allow_abbrev=False, description=inspect.getdoc(inspect.getmodule(main))
    )
    parser.add_argument("--config", action="config", help="YAML file with values for the flags below")
    groups = grouped_parameters(main)
    parser.add_function_arguments(main, skip=set(groups))
    for parameter in groups.values():
        given = None if parameter.default is inspect.Parameter.empty else parameter.default
        parser.add_class_arguments(parameter.annotation, **({"default": given} if given is not None else {}))
    values = dict(vars(parser.instantiate(parser.parse_args(argv))))
    values.pop("config"), values.pop("__path__", None)
    for name, parameter in groups.items():
        values[name] = parameter.annotation(**{f.name: plain(values.pop(f.name)) for f in fields(parameter.annotation)})
    return {name: plain(value) for name, value in values.items()}


def grouped_parameters(main: Callable[..., None]) -> dict[str, inspect.Parameter]:
    """The parameters of `main` that are dataclasses: their fields become flags of their own."""
    return {n: p for n, p in inspect.signature(main).parameters.items() if is_dataclass(p.annotation)}


def plain(value: Any) -> Any:
    """A parsed value without jsonargparse's own containers."""
    return value.as_dict() if isinstance(value, Namespace) else value


def one_line(error: ArgumentError, main: Callable[..., None]) -> str:
    """jsonargparse's report as `--flag: expected X, got 'value'`, with close matches for an unknown flag."""
    text = str(error)
    if unknown := re.search(r"[Uu]nrecognized arguments: (.*)", text):
        first = unknown[1].split()[0].split("=")[0]
        close = get_close_matches(first, [f"--{name}" for name in flag_names(main)], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "--help lists the flags"
        return f"unknown argument {unknown[1]!r}; {hint}"
    key = re.search(r'Parser key "([^"]+)"', text)
    given = re.search(r"Given value: (.*)", text)
    if key and given:
        kinds = dict.fromkeys(re.findall(r"Expected an? (.*)", text))
        names = [re.sub(r"<class '([\w.]+)'>|typing\.", lambda m: (m[1] or "").split(".")[-1], k) for k in kinds]
        wanted = " or ".join(n.rstrip(".") for n in names if n != "NoneType")
        return f"--{key[1]}: expected {wanted or 'another value'}, got {given[1]!r}"
    if missing := re.search(r"following arguments are required: (.*)", text):
        return "missing " + ", ".join(f"--{name.strip()}" for name in missing[1].split(","))
    return re.sub(r"\s+", " ", text).strip()


def flag_names(main: Callable[..., None]) -> list[str]:
    """Every flag of `main`, without the dashes."""
    names = list(inspect.signature(main).parameters)
    for name, parameter in grouped_parameters(main).items():
        names[names.index(name) : names.index(name) + 1] = [f.name for f in fields(parameter.annotation)]
    return names
