"""Converts chat templates between a checkpoint folder and the metadata of a gguf file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_gpt.files import write_text

_DEFAULT, _FILE, _FOLDER = "default", "chat_template.jinja", "additional_chat_templates"
"""Name of the default template, its file, and the folder of the other templates, as in transformers."""
TEMPLATES = (_FILE, _FOLDER)
_LONGEST_NAME = 200
"""Largest number of bytes of the key of a template, which names its file."""
_KEY, _NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"


def template_metadata(templates: Mapping[str, str]) -> dict[str, Any]:
    """Returns the keys that hold chat templates, with only letters, digits and underscores in names as in llama.cpp."""
    named = {re.sub("[^A-Za-z0-9]", "_", name): text for name, text in templates.items()}
    keys: dict[str, Any] = {_KEY if name == _DEFAULT else f"{_KEY}.{name}": text for name, text in named.items()}
    if others := sorted(named.keys() - {_DEFAULT}):
        keys[_NAMES] = others
    return keys


def check_templates(metadata: Mapping[str, Any]) -> None:
    """Checks that all chat templates are texts, with names that a file can have; raises ValueError if not."""
    for key in _keys(metadata):
        if not isinstance(metadata[key], str) or len(key.encode()) > _LONGEST_NAME:
            raise ValueError(f"{key} is no chat template")


def write_templates(metadata: Mapping[str, Any], folder: Path) -> None:
    """Writes a file's chat templates into `folder`, except those that it has already.

    Args:
        metadata: all keys of the file with their values, which `check_templates` has checked.
    """
    for key in _keys(metadata):
        name = re.sub(r"[^\w-]", "_", key.removeprefix(_KEY).removeprefix(".")) or _DEFAULT
        path = folder / _FILE if name == _DEFAULT else folder / _FOLDER / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_text(path, metadata[key])


def _keys(metadata: Mapping[str, Any]) -> list[str]:
    return [key for key in metadata if key == _KEY or key.startswith(f"{_KEY}.")]
