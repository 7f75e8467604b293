"""The wording of a style, which is recorded with the data made in it.

Another version of this toolkit may word a style differently.
"""

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from lit_gpt.errors import shown
from lit_gpt.prompts.styles import STYLES
from lit_gpt.prompts.turns import Turn

WORDING = "style_writes"
"""Key of meta.json that holds the wording."""
_TURNS = [Turn("user", "Q1"), Turn("assistant", "A1"), Turn("user", "Q2"), Turn("assistant", "A2")]
_OTHERS_BEFORE = frozenset(
    ("chatml", "codellama", "gemma", "llama2", "llama2-function-calling", "stablelm-zephyr", "tinyllama")
)
"""Styles that had another wording in versions that did not record it; some tokenizers give the same ids for both."""
_MAY_DIFFER = "wrote other texts in the version that prepared the data, for most models, than it does now"


def wording(name: str) -> str | None:
    """Returns the text that the style makes of two short exchanges; None for a chat template."""
    if name not in STYLES:
        return None
    return "".join(f"{e.prompt}{e.answer}{e.end or '</s>'}" for e in STYLES[name].exchanges(_TURNS))


def wording_of(meta: Mapping[str, Any]) -> str | None:
    """Returns the wording when the data of a meta.json was prepared; empty if it differed and was not recorded."""
    if WORDING in meta:
        return meta[WORDING]
    return "" if meta["prompt_style"] in _OTHERS_BEFORE else wording(meta["prompt_style"])


def reworded(meta: Any) -> str | None:
    """Returns a one-line note if the style of prepared data, or of a run trained on it, is worded differently now.

    Args:
        meta: what a file says of the data; anything but names with values says nothing.
    """
    name = meta.get("prompt_style", "") if isinstance(meta, dict) else ""
    if not isinstance(name, str) or name not in STYLES or wording_of(meta) == wording(name):
        return None
    differs = f"now writes other texts than {shown(meta[WORDING], 400)}" if meta.get(WORDING) else _MAY_DIFFER
    return (
        f"note: the prompt style {name} {differs}: {wording(name)!r}; what is trained on the data is then asked "
        "otherwise than it was trained; prepare the data again and train anew to have both alike"
    )


@cache
def say(line: str) -> None:
    """Prints a line on stderr, once per process."""
    print(line, file=sys.stderr)
