"""Converts text to a value of a flag's annotated type, or says in a sentence what a value would look like.

Flags and config files are converted alike: YAML scalars stay text until the annotation says what they are. So
`max_time: 24:00:00` is not a number in base 60, `precision: 16` is not an integer, and `1e-5` is a number everywhere.
"""

import math
import types
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from lit_gpt import errors
from lit_gpt.records import compose_yaml

_ALIASES = {"nf4": "bnb.nf4", "nf4-dq": "bnb.nf4-dq", "fp4": "bnb.fp4", "fp4-dq": "bnb.fp4-dq"}
_ALIASES |= {"int8-training": "bnb.int8-training"}
_ALIASES |= dict.fromkeys(("bf16", "bfloat16"), "bf16-true")
_ALIASES |= dict.fromkeys(("16", "fp16", "float16", "half"), "16-true")
_ALIASES |= dict.fromkeys(("32", "fp32", "float32"), "32-true")
"""Aliases: the usual name of a value -> our name, where the flag has that among its choices."""
_DTYPES = {
    "bf16": "bfloat16",
    "16": "float16",
    "fp16": "float16",
    "half": "float16",
    "32": "float32",
    "fp32": "float32",
}
"""Aliases of dtypes, used like _ALIASES."""
_WORDS: dict[str, bool] = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = ("null", "~")


class Unfit(ValueError):
    """An error for a value that does not fit its flag. The message says why, if there is more to say than the type."""


class Loader(yaml.BaseLoader):
    """A YAML loader that keeps scalars as text; an empty one, null and ~ without quotes are None."""


def _scalar(loader: Loader, node: yaml.ScalarNode) -> str | None:
    return None if node.style is None and node.value.lower() in ("", *_NULLS) else node.value


Loader.add_constructor("tag:yaml.org,2002:str", _scalar)
for _tag in ("null", "bool", "int", "float", "timestamp"):  # explicit tags, as in `!!float 1`
    Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _scalar)


def convert(kind: Any, raw: Any) -> Any:
    """Returns `raw` as a value of the annotation `kind`.

    Args:
        raw: text, None, or lists and dictionaries of these.

    Raises:
        Unfit: `raw` is not such a value.
    """
    if kind is Any:
        return _meant(raw)
    kinds = _alternatives(kind)
    if raw is None or (isinstance(raw, str) and raw in _NULLS and str not in kinds):
        return _null(kinds)
    if raw == "null" and type(None) in kinds:
        return None
    choices = [choice for k in kinds if get_origin(k) is Literal for choice in get_args(k)]
    if choices:
        return _choice(choices, raw, type(None) in kinds)
    reasons = []
    for k in sorted((k for k in kinds if k is not type(None)), key=_rank):
        try:
            return _READERS[get_origin(k) or k](k, raw)
        except Unfit as e:
            reasons.append(str(e))
    raise Unfit(next((reason for reason in reasons if reason), ""))


def allowed(kind: Any) -> str:
    """Returns what a value of this annotation is, to complete a sentence that begins with "must be"."""
    kinds = [k for k in _alternatives(kind) if k is not type(None)]
    choices = [str(choice) for k in kinds if get_origin(k) is Literal for choice in get_args(k)]
    if choices:
        return f"one of {', '.join(choices)}"
    names = dict.fromkeys(_NAMES[get_origin(k) or k] for k in sorted(kinds, key=_rank))
    if "a number" in names:
        names.pop("a whole number", None)
    return " or ".join(names)


def is_list(kind: Any) -> bool:
    """Returns whether the annotation takes a list."""
    return any(get_origin(k) in (tuple, list) for k in _alternatives(kind))


def shown(raw: Any) -> str:
    """Returns a wrong value as an error message quotes it."""
    return "nothing" if raw is None else errors.shown(raw)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """Returns the types of a union; any other annotation is its only alternative."""
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(k for part in get_args(kind) for k in _alternatives(part))
    return (kind,)


def _rank(kind: Any) -> int:
    """Returns the order in which alternatives of a union are tried: those that take any text come last."""
    return list(_READERS).index(get_origin(kind) or kind)


def _null(kinds: tuple[Any, ...]) -> None:
    if type(None) not in kinds:
        raise Unfit
    return None


def _choice(choices: list[str], raw: Any, optional: bool) -> str | None:
    """Returns one of `choices`, given by its own name or an alias, in any case."""
    if not isinstance(raw, str):
        raise Unfit
    text = raw.strip()
    by_name = {choice.lower(): choice for choice in choices}
    for name in (text.lower(), _ALIASES.get(text.lower()), _DTYPES.get(text.lower())):
        if name in by_name:
            return by_name[name]
    if optional and text.lower() == "none":
        return None
    by_name |= {alias: by_name[name] for alias, name in (_ALIASES | _DTYPES).items() if name in by_name}
    close = get_close_matches(text.lower(), by_name, n=1)
    raise Unfit(f"did you mean {by_name[close[0]]}?" if close else "")


def _bool(kind: Any, raw: Any) -> bool:
    if not isinstance(raw, str) or raw.strip().lower() not in _WORDS:
        raise Unfit
    return _WORDS[raw.strip().lower()]


def _number(kind: Any, raw: Any) -> float:
    try:
        value = float(raw) if isinstance(raw, str) else math.nan
    except ValueError:
        raise Unfit from None
    if not math.isfinite(value):
        raise Unfit
    return value


def _whole(kind: Any, raw: Any) -> int:
    """Returns an integer, which may be written as 5e4."""
    value = _number(kind, raw)
    if not value.is_integer():
        raise Unfit
    try:
        return int(raw)  # keeps the digits of integers that a float would round
    except ValueError:
        return int(value)


def _path(kind: Any, raw: Any) -> Path:
    if not isinstance(raw, str) or raw.strip() == "" or "\0" in raw:
        raise Unfit
    if raw.startswith("{"):
        raise Unfit('names and values are written "{name: value}"')
    return Path(raw).expanduser()


def _text(kind: Any, raw: Any) -> str:
    if not isinstance(raw, str):
        raise Unfit
    return raw


def _list(kind: Any, raw: Any) -> tuple[Any, ...]:
    """Returns a list written as `a,b`, as `[a, b]`, or as YAML lines that begin with a dash.

    A text of white space alone, such as a line break that ends an answer, is one entry.
    """
    if isinstance(raw, str) and raw.isspace():
        raw = [raw]
    if isinstance(raw, str):
        if raw.lstrip().startswith("{"):
            raise Unfit
        raw = _loaded(raw) if raw.lstrip().startswith(("[", "- ")) else [p.strip() for p in raw.split(",") if p.strip()]
    if not isinstance(raw, list):
        raise Unfit
    return tuple(_part(get_args(kind)[0], item, "in it ") for item in raw)


def _dict(kind: Any, raw: Any) -> dict[str, Any]:
    if isinstance(raw, str):
        if not raw.lstrip().startswith("{"):
            raise Unfit
        raw = _loaded(raw)
    if not isinstance(raw, dict):
        raise Unfit
    glued = [key for key, value in raw.items() if value is None and ":" in str(key)]
    if glued:
        raise Unfit(f"put a space after the colon in {glued[0]!r}")
    if any(not isinstance(key, str) for key in raw):
        raise Unfit
    return {key: _part(get_args(kind)[1], value, f"{key} ") for key, value in raw.items()}


def _meant(raw: Any) -> Any:
    """Returns the obvious reading of a value for a flag that takes any: null, true or false, a number, or text."""
    if isinstance(raw, dict):
        return {key: _meant(value) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_meant(value) for value in raw]
    if raw in ("true", "false"):
        return raw == "true"
    for number in (_whole, _number):
        with suppress(Unfit):
            return number(None, raw)
    return None if raw in _NULLS else raw


def _part(kind: Any, raw: Any, where: str) -> Any:
    """Returns one value of a list or a dictionary."""
    try:
        return convert(kind, raw)
    except Unfit as e:
        raise Unfit(f"{where}{shown(raw)} must be {allowed(kind)}{f'; {e}' if str(e) else ''}") from None


def _loaded(text: str) -> Any:
    """Returns a list or dictionary that is written as YAML."""
    try:
        node = compose_yaml(text, Loader)
        return None if node is None else Loader("").construct_document(node)
    except yaml.YAMLError:
        pair, example = ("[]", '"[a, b]"') if text.lstrip().startswith("[") else ("{}", '"{a: x, b: y}"')
        if not text.rstrip().endswith(pair[1]):
            reason = f"the closing {pair[1]} is missing; put quotes around all of it, where it has spaces: {example}"
        else:
            reason = f"what is between {pair[0]} and {pair[1]} is not written as in {example}"
        raise Unfit(reason) from None


_READERS = {bool: _bool, int: _whole, float: _number, list: _list, tuple: _list, dict: _dict, Path: _path, str: _text}
"""Function that reads each type, in the order in which the types of a union are tried."""
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "a text"}
_NAMES |= dict.fromkeys((list, tuple), "a list such as a,b") | {dict: 'names with values such as "{a: x, b: y}"'}
"""Name of each type in error messages."""
