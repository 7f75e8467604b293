"""The help of a script, and its flags with their values as a config file."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.cli.flags import ALIASES, Flag, flags_of
from lit_gpt.errors import CommandLineError

_PRINTED = ("", "skip_default", "skip_null")
"""The values that --print_config takes."""
_CONFIG = "YAML file with values for the flags below"
_PRINT = "print the flags with their values as such a file, and stop; =skip_default leaves out what is as it would be"


def help_of(main: Callable[..., None]) -> str:
    """Returns what --help prints: the script's docstring, and each flag with its meaning, type and default."""
    from jsonargparse import ArgumentParser, set_parsing_settings  # only here: it takes as long as the rest of a start

    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the text under a dataclass field is its help
    parser = ArgumentParser(description=inspect.getdoc(inspect.getmodule(main)), epilog=_short_forms(main))
    parser.add_argument("--config", help=_CONFIG)
    parser.add_argument("--print_config", metavar="[=skip_default]", help=_PRINT)
    parameters = inspect.signature(main).parameters
    groups = {n: p for n, p in parameters.items() if is_dataclass(p.annotation)}
    parser.add_function_arguments(main, skip=set(groups))
    for parameter in groups.values():
        given = None if parameter.default is inspect.Parameter.empty else parameter.default
        parser.add_class_arguments(parameter.annotation, **({"default": given} if given is not None else {}))
    return parser.format_help()


def _short_forms(main: Callable[..., None]) -> str:
    """Returns the note on the short forms that are understood, limited to the flags that the script has."""
    flags = flags_of(main)
    names = [f"--{alias} is --{flag}" for alias, flag in ALIASES.items() if flag in flags]
    values = {"quantize": "nf4 and fp4 are bnb.nf4 and bnb.fp4", "precision": "bf16, 16 and 32 are *-true"}
    values |= {"dtype": "bf16, fp16 and fp32 are understood, too"}
    short_values = [f"--{flag}: {text}" for flag, text in values.items() if flag in flags]
    lists = "Lists are written a,b or [a, b]"
    return "; ".join([lists, *names, *short_values]) + ". LIT_GPT_TRACEBACK=1 shows where an error comes from."


def config_text(flags: Mapping[str, Flag], values: Mapping[str, Any], how: str = "") -> str:
    """Returns the flags with their values as YAML that --config takes.

    Args:
        values: values of the flags that were given; the others have their defaults, or are left out if they have none.
        how: one of _PRINTED.

    Raises:
        CommandLineError: `how` is none of them.
    """
    if how not in _PRINTED:
        raise CommandLineError(f"--print_config={how} is none of --print_config, {', '.join(_PRINTED[1:])}")
    rows = {}
    for name, flag in flags.items():
        value = values.get(name, flag.default)
        same = how == "skip_default" and value == flag.default
        if value is not MISSING and not same and not (how == "skip_null" and value is None and flag.default is None):
            rows[name] = _plain(value)
    return yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=10**6) if rows else ""


def _plain(value: Any) -> Any:
    """Returns a value as plain lists, dictionaries and scalars that YAML can write."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
