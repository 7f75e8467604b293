"""Files written whole or not at all (`whole`), and files of tensors (`states`, `shards`) that stream through memory."""

from lit_gpt.files.shards import save_safetensors_shards
from lit_gpt.files.states import load_objects, load_state, open_state, save_state, save_stream
from lit_gpt.files.tensors import Later, OneFileOpen, Opened, Spec, spec_of
from lit_gpt.files.undo import nothing_left_of_a_failure
from lit_gpt.files.whole import remove, replace_folder, replace_with, require_room, temporary_beside, write_text
from lit_gpt.files.writers import only_writer

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
