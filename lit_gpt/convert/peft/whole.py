"""Adapters of a decoder that is a part of a multimodal model, by the names that its modules have there.

PEFT adapts the whole as transformers loads it, in which other parts have layers of the same names. Elsewhere in this
folder the decoder's modules are called as in a model of text alone.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lit_gpt.errors import UserError, shown
from lit_gpt.families.wrappers import name_in_whole, name_of_text

_PREFIX = "base_model.model."
_LISTS = ("target_parameters", "modules_to_save")
_BY_NAME = ("rank_pattern", "alpha_pattern", "trainable_token_indices")


def for_whole(
    state: Mapping[str, Tensor], settings: Mapping[str, Any], wrapper: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns an adapter of the decoder as one of the multimodal model around it, whose other parts it leaves alone.

    Args:
        settings: content of adapter_config.json, as `write_settings` returns it.
        wrapper: class of the multimodal model.
    """

    def renamed(name: str) -> str:
        return name_in_whole(name, wrapper)

    names = [renamed(name) for name in settings["target_modules"]]
    decoder = renamed("model.")
    apart = [name for name in names if name.startswith(decoder) or "lm_head" in name]  # names that no other part has
    ends = "|".join(re.escape(name) for name in names if name not in apart)
    patterns = [rf"{re.escape(decoder)}(.*\.)?({ends})"] if ends else []
    found = _renamed(settings, renamed) | {"target_modules": "|".join((*patterns, *map(re.escape, apart)))}
    return {_PREFIX + renamed(key.removeprefix(_PREFIX)): x for key, x in state.items()}, found


def for_text(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns an adapter of a multimodal model as one of its decoder; one of the decoder stays as it is.

    Updates of other parts are left out where they are zero, as training on text leaves them.

    Raises:
        UserError: a pattern is no name of a module, and says where in the whole it is.
    """
    if not any("language_model." in key for key in state):
        return dict(state), dict(settings)
    found = {}
    for key, x in state.items():
        module = key.rpartition(".lora_")[0]
        name = name_of_text(key.removeprefix(_PREFIX))
        update = [state.get(f"{module}.lora_B{end}") for end in (".weight", ".default.weight")]
        if name is not None:
            found[_PREFIX + name] = x
        elif not any(B is not None and not B.any() for B in update):
            found[key] = x
    return found, _renamed(settings, _pattern_of_text)


def _pattern_of_text(pattern: str) -> str:
    """Returns a name in settings as the decoder has it; one that says nothing of the whole stays."""
    name = name_of_text(pattern.replace("\\.", "."))
    if name is None and "language_model" in pattern:
        raise UserError(
            f"adapter_config.json has the pattern {shown(pattern)}, which is read for a model of text alone only if it "
            "is the name of a layer; list the names instead"
        )
    return name or pattern


def _renamed(settings: Mapping[str, Any], renamed: Callable[[str], str]) -> dict[str, Any]:
    """Returns settings with the names of modules in them replaced."""
    found = dict(settings)
    for key in _LISTS:
        if isinstance(names := settings.get(key), list):
            found[key] = [renamed(name) if isinstance(name, str) else name for name in names]
    for key in _BY_NAME:
        if isinstance(by_name := settings.get(key), dict):
            found[key] = {renamed(name): value for name, value in by_name.items()}
    return found
