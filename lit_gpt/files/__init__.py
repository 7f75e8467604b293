"""Files written whole or not at all (`whole`), and files of tensors (`states`, `shards`) that stream through memory.

What reads and writes tensors needs torch, and is imported when it is asked for: preparing data does without.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from lit_gpt.files.undo import nothing_left_of_a_failure
from lit_gpt.files.whole import remove, replace_folder, replace_with, require_room, temporary_beside, write_text
from lit_gpt.files.writers import only_writer

if TYPE_CHECKING:
    from lit_gpt.files.shards import save_safetensors_shards
    from lit_gpt.files.states import load_objects, load_state, open_state, save_state, save_stream
    from lit_gpt.files.tensors import Later, OneFileOpen, Opened, Spec, spec_of

_OF_TENSORS = {"save_safetensors_shards": "shards"}
_OF_TENSORS |= dict.fromkeys(("load_objects", "load_state", "open_state", "save_state", "save_stream"), "states")
_OF_TENSORS |= dict.fromkeys(("Later", "OneFileOpen", "Opened", "Spec", "spec_of"), "tensors")
"""Names that are imported late -> their modules."""

__all__ = [
    "Later",
    "OneFileOpen",
    "Opened",
    "Spec",
    "load_objects",
    "load_state",
    "nothing_left_of_a_failure",
    "only_writer",
    "open_state",
    "remove",
    "replace_folder",
    "replace_with",
    "require_room",
    "save_safetensors_shards",
    "save_state",
    "save_stream",
    "spec_of",
    "temporary_beside",
    "write_text",
]


def __getattr__(name: str) -> object:
    if name not in _OF_TENSORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_OF_TENSORS[name]}"), name)
