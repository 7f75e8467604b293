"""Writes a Modelfile beside a gguf file, which tells Ollama the prompt template and the stop tokens.

The format: https://docs.ollama.com/modelfile
"""

import re
import shlex
from pathlib import Path

from lit_gpt.files import write_text
from lit_gpt.prompts import CHAT_TEMPLATE, ChatTemplate, Style, open_style, stop_ids
from lit_gpt.prompts.chat_template import read_templates
from lit_gpt.prompts.exported import style_shown
from lit_gpt.prompts.go import go_of
from lit_gpt.tokenizer import Tokenizer

_MODELFILE = "Modelfile"
_OTHER_TEMPLATE = """\
# No TEMPLATE: Ollama's language has no words for the model's own chat template. Ollama takes one of its own if it knows
# this one, and else none; `llama-server --jinja` renders the one that is in the file."""
_BARE = "# No TEMPLATE: the model has no chat template, and continues the text that it is given."


def write_modelfile(gguf: Path, checkpoint_dir: Path) -> Path:
    """Writes a Modelfile into the folder of a gguf file, and returns its path.

    Args:
        checkpoint_dir: the folder with the tokenizer and the chat template.

    Raises:
        UserError: there is no tokenizer.
    """
    tokenizer = Tokenizer(checkpoint_dir)
    style: Style | ChatTemplate | None = style_shown(checkpoint_dir, tokenizer)
    if style is None and "default" in read_templates(checkpoint_dir):
        style = open_style(CHAT_TEMPLATE, checkpoint_dir, tokenizer)
    lines = [f"FROM ./{gguf.name}", ""]
    if isinstance(style, Style):
        lines += [f'TEMPLATE """{go_of(style)}"""', ""]
        lines += [f"SYSTEM {_quoted(style.default_system)}", ""] if style.default_system else []
    else:
        lines += [_BARE if style is None else _OTHER_TEMPLATE, ""]
    ends = tokenizer.stop_ids if style is None else stop_ids(style, tokenizer)
    lines += [f"PARAMETER stop {_quoted(token)}" for token in map(tokenizer.id_to_token, sorted(ends)) if token]
    path = gguf.parent / _MODELFILE
    write_text(path, "\n".join(lines) + "\n")
    return path


def create_line(folder: Path, name: str) -> str:
    """Returns the command that creates an Ollama model from the gguf file in a folder."""
    model = re.sub("[^a-z0-9._-]+", "-", name.lower()).strip("-._")
    return f"ollama create {model} -f {shlex.quote(str(folder / _MODELFILE))}"


def _quoted(text: str) -> str:
    """Returns a quoted value for a Modelfile, whose syntax has no escapes."""
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'
