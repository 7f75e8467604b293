"""The flags of a function: its parameters, and the fields of those parameters that are dataclasses."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

ALIASES = {"lr": "learning_rate", "bs": "batch_size", "wd": "weight_decay", "rank": "lora_r", "alpha": "lora_alpha"}
ALIASES |= {"num_epochs": "epochs", "num_train_epochs": "epochs", "tasks": "eval_tasks"}
ALIASES |= {"system_instruction": "system"}
"""Aliases: the usual name of a flag -> our name, in scripts that have the flag."""
_OWN = ("config", "print_config", "help")
"""Flags that every script has."""


@dataclass(frozen=True)
class Flag:
    """A flag of a script."""

    name: str
    kind: Any
    """The annotation of its type."""
    default: Any
    """The default value; MISSING if the flag must be given."""
    parameter: str
    """The parameter of `main` that it sets: the flag itself, or the dataclass that it is a field of."""


def flags_of(main: Callable[..., None]) -> dict[str, Flag]:
    """Returns every flag of `main` by its name, in the order of the signature."""
    hints, flags = get_type_hints(main), []
    for name, parameter in inspect.signature(main).parameters.items():
        given = MISSING if parameter.default is inspect.Parameter.empty else parameter.default
        if not is_dataclass(hints[name]):
            flags.append(Flag(name, hints[name], given, name))
            continue
        kinds = get_type_hints(hints[name])
        for field in fields(hints[name]):
            default = field.default if given is MISSING else getattr(given, field.name)
            flags.append(Flag(field.name, kinds[field.name], default, name))
    return {flag.name: flag for flag in flags}


def arguments_of(main: Callable[..., None], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments for `main` that the values of all its flags make.

    Raises:
        UserError: values that contradict each other (from the dataclasses' own checks).
    """
    hints, flags, arguments = get_type_hints(main), flags_of(main).values(), {}
    for name in inspect.signature(main).parameters:
        mine = {flag.name: values[flag.name] for flag in flags if flag.parameter == name}
        arguments[name] = hints[name](**mine) if is_dataclass(hints[name]) else mine[name]
    return arguments


def find(word: str, flags: Mapping[str, Flag]) -> str | None:
    """Returns the flag that a word without leading dashes means, an alias or one with dashes included; None if none."""
    name = word.replace("-", "_")
    if name in flags or name in _OWN:
        return name
    return ALIASES[name] if ALIASES.get(name) in flags else None


def nearest(word: str, flags: Mapping[str, Flag]) -> list[str]:
    """Returns the flags that a misspelled word may mean, the nearest first."""
    name = word.replace("-", "_").lower()
    known = [*flags, *_OWN, *(alias for alias, flag in ALIASES.items() if flag in flags)]
    close = get_close_matches(name, known, n=3, cutoff=0.7)
    parts = [k for k in flags if len(name) > 2 and name in k.split("_")]
    return list(dict.fromkeys(ALIASES.get(k, k) for k in [*close, *parts]))[:3]


def meaning(main: Callable[..., None], flag: Flag) -> str:
    """Returns what the docstring of `main` or of the dataclass says of a flag, up to its first semicolon."""
    kind = get_type_hints(main)[flag.parameter]
    if isinstance(kind, type) and is_dataclass(kind):
        found = re.search(rf"^    {flag.name}: .*\n    \"\"\"([^;.\"]+)", inspect.getsource(kind), re.MULTILINE)
    else:
        found = re.search(rf"^ +{flag.name}: ([^;\n]+)", inspect.getdoc(main) or "", re.MULTILINE)
    return re.sub(r"\s+", " ", found[1]).strip().rstrip(".") if found else ""
