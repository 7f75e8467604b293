"""The chat templates of a checkpoint folder <-> those of a gguf file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_gpt.files import write_text
from lit_gpt.tokenizer.settings import read_settings

_DEFAULT, _FILE, _FOLDER = "default", "chat_template.jinja", "additional_chat_templates"
"""The name of the template that is used if none is asked for, its file, and the folder of the others', as in
transformers."""
_KEY, _NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"


def read_templates(checkpoint_dir: Path) -> dict[str, str]:
    """A folder's chat templates by name. Files go before tokenizer_config.json, as in training and in transformers."""
    stated = read_settings(checkpoint_dir).config.get("chat_template")
    entries = stated if isinstance(stated, list) else [{"name": _DEFAULT, "template": stated}]
    found = {t.get("name"): t.get("template") for t in entries if isinstance(t, dict)}
    files = {path.stem: path for path in sorted((checkpoint_dir / _FOLDER).glob("*.jinja"))}
    if (path := checkpoint_dir / _FILE).is_file():
        files[_DEFAULT] = path
    found |= {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    return {n: text for n, text in found.items() if isinstance(n, str) and isinstance(text, str) and n and text}


def template_metadata(templates: Mapping[str, str]) -> dict[str, Any]:
    """The keys that hold chat templates; llama.cpp's own converter has letters, digits and underscores in names."""
    named = {re.sub("[^A-Za-z0-9]", "_", name): text for name, text in templates.items()}
    keys: dict[str, Any] = {_KEY if name == _DEFAULT else f"{_KEY}.{name}": text for name, text in named.items()}
    if others := sorted(named.keys() - {_DEFAULT}):
        keys[_NAMES] = others
    return keys


def write_templates(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write a file's chat templates into `folder`, but for those that it has already.

    Args:
        metadata: all keys of the file, with functions that give the values.
    """
    for key in metadata:
        if key != _KEY and not key.startswith(f"{_KEY}."):
            continue
        name = re.sub(r"[^\w-]", "_", key.removeprefix(_KEY).removeprefix(".")) or _DEFAULT
        path = folder / _FILE if name == _DEFAULT else folder / _FOLDER / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_text(path, str(metadata[key].contents()))
