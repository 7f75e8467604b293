"""The models we know. A new family is one new file in this folder, with a `FAMILY`; everything else picks it up."""

from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from lit_gpt.config import Config
from lit_gpt.errors import UserError
from lit_gpt.families.family import Architecture, Family

_TOOLS = ("family", "overview", "window", "wrappers")
"""Modules of this folder that are not a family."""
_modules = (import_module(f"{__name__}.{m.name}") for m in iter_modules(__path__) if m.name not in _TOOLS)
FAMILIES: list[Family] = [m.FAMILY for m in _modules]
ARCHITECTURES: dict[str, Architecture] = {f.architecture.name: f.architecture for f in FAMILIES}
MODELS: dict[str, dict[str, Any]] = {name: fields for f in FAMILIES for name, fields in f.configs.items()}
"""Short name -> Config fields."""
_NAMES: dict[str, str] = {fields["hf_repo"]: name for name, fields in MODELS.items()}
"""`org/name` -> short name, which mostly is the same name."""


def config_for(name: str, **overrides: Any) -> Config:
    """Returns the configuration of a model, by short name or `org/name`.

    Args:
        overrides: fields of Config to set otherwise.

    Raises:
        UserError: no family declares `name`; the message lists close matches.
    """
    short = _NAMES.get(name, name.rpartition("/")[2])
    if short not in MODELS:
        close = get_close_matches(short, MODELS, n=4, cutoff=0.4)
        hint = f"close matches: {', '.join(close)}" if close else "python scripts/download.py lists the known ones"
        raise UserError(f"unknown model {name!r}; {hint}")
    return Config(**{**MODELS[short], **overrides})
