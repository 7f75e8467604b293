"""Reads the words of a command line and the entries of config files as values of flags; a mistake is one sentence."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.args.folders import suggestion
from lit_gpt.cli.flags import Flag, find, nearest
from lit_gpt.cli.values import Loader, Unfit, allowed, convert, is_list, shown
from lit_gpt.errors import CommandLineError
from lit_gpt.records import TooLargeError, compose_yaml


@dataclass
class Asked:
    """The request of a command line: values of flags, or to print the help or the config."""

    values: dict[str, Any] = field(default_factory=dict)
    """Values of the flags that were given, by flag; the last one if a flag was given twice."""
    help: bool = False
    print_config: str | None = None
    """The value of --print_config, which replaces running: all values (empty), skip_default or skip_null."""


def read(argv: list[str], flags: Mapping[str, Flag]) -> Asked:
    """Returns what `argv` asks for; a config file counts where its --config stands, so later flags override it.

    Raises:
        CommandLineError: an unknown flag, a missing config file, or a value of another type.
    """
    asked = Asked()
    for word, value in _pairs(argv, flags):
        name = find(word, flags)
        if name is None:
            raise CommandLineError(f"unknown flag --{word}; {_hint(word, flags)}")
        if name == "help":
            asked.help = True
        elif name == "print_config":
            asked.print_config = value or ""
        elif value is None:
            raise CommandLineError(f"--{word} has no value; it must be {_allowed(name, flags)}")
        elif name == "config":
            asked.values |= _read_config(value, flags)
        else:
            asked.values[name] = value_of(flags[name], value, f"--{word}" if word == name else f"--{word} (--{name})")
    return asked


def _pairs(argv: list[str], flags: Mapping[str, Flag]) -> Iterator[tuple[str, str | None]]:
    """Yields (flag without dashes, value) for each flag in turn.

    Raises:
        CommandLineError: a word that belongs to no flag.
    """
    words, last = list(argv), None
    while words:
        word = words.pop(0)
        if word == "-h":
            word = "--help"
        if not word.startswith("--") or word == "--":
            raise CommandLineError(_stray(word, last, flags))
        name, equals, value = word[2:].partition("=")
        last = find(name, flags)
        alone = equals or last in ("help", "print_config") or not words or _is_flag(words[0])
        yield name, (value if equals else None) if alone else words.pop(0)


def _is_flag(word: str) -> bool:
    """Returns whether a word is a flag, rather than text that begins with dashes."""
    return word.startswith("--") and " " not in word


def _stray(word: str, last: str | None, flags: Mapping[str, Flag]) -> str:
    """Returns the error message for a word that is neither a flag nor a flag's value."""
    if word.startswith("-"):
        return f"unknown flag {word}; {_hint(word.lstrip('-'), flags)}"
    if last is not None and last in flags and is_list(flags[last].kind):
        return f"unexpected {word!r}; --{last} takes a list without spaces, such as a,b"
    if last is not None:
        return f"unexpected {word!r} after --{last} and its value; put quotes around a value that has spaces"
    return f"unexpected {word!r}; each value stands after its flag, as in --flag {word}"


def _allowed(name: str, flags: Mapping[str, Flag]) -> str:
    return "a YAML file" if name == "config" else allowed(flags[name].kind)


def _hint(word: str, flags: Mapping[str, Flag], dashes: str = "--") -> str:
    close = nearest(word, flags)
    return f"did you mean {' or '.join(dashes + name for name in close)}?" if close else "--help lists the flags"


def value_of(flag: Flag, raw: Any, where: str) -> Any:
    """Returns `raw` as a value of the flag.

    Raises:
        CommandLineError: `raw` is not one.
    """
    try:
        return convert(flag.kind, raw)
    except Unfit as e:
        reason = f"; {e}" if str(e) else ""
        raise CommandLineError(f"{where} must be {allowed(flag.kind)}, found {shown(raw)}{reason}") from None


def _read_config(name: str, flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Returns the values of flags in a config file.

    Raises:
        CommandLineError: no such file, no YAML, an unknown key or a value of another type, with its line.
    """
    values: dict[str, Any] = {}
    for key, raw, line in _entries(Path(name).expanduser()):
        flag = find(key, flags)
        place = f"{name}, line {line}"
        if flag is None or flag not in flags:
            nested = isinstance(raw, dict) and raw and set(raw) <= set(flags)
            way_out = f"write {', '.join(raw)} without it" if nested else _hint(key, flags, dashes="")
            raise CommandLineError(f"{place}: {key!r} is no flag of this script; {way_out}")
        if flag in values:
            raise CommandLineError(f"{place}: {flag} stands there twice; leave one out")
        values[flag] = value_of(flags[flag], raw, f"{place}: {key}")
    return values


def _entries(path: Path) -> list[tuple[str, Any, int]]:
    """Returns (key, value, line) of each entry of a YAML file.

    Raises:
        CommandLineError: the file is missing, unreadable, or not YAML with one flag a line.
    """
    try:
        node, loader = compose_yaml(path, Loader), Loader("")
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise CommandLineError(f"--config {path} has no flags with values, one a line, such as learning_rate: 3e-4")
        pairs = [(loader.construct_object(k, True), loader.construct_object(v, True), k) for k, v in node.value]
        return [(str(key), value, k.start_mark.line + 1) for key, value, k in pairs]
    except FileNotFoundError:
        raise CommandLineError(f"--config {path}: there is no such file{suggestion(path)}") from None
    except OSError as e:
        raise CommandLineError(f"--config {path} cannot be read ({e.strerror})") from None
    except UnicodeError:
        raise CommandLineError(f"--config {path} is not a text file in UTF-8") from None
    except TooLargeError as e:
        raise CommandLineError(f"--config {path} is not read ({e}); write one flag a line") from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        raise CommandLineError(
            f"--config {path}{f', line {mark.line + 1}' if mark else ''} is not YAML; write one flag a line, "
            "such as learning_rate: 3e-4, without indentation, and put quotes around a text that has a colon"
        ) from None
