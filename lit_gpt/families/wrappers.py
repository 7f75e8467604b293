"""Multimodal checkpoints with a decoder in them that we know, and how its tensors are called there."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple


class _Wrapper(NamedTuple):
    """What transformers takes for granted of a class where config.json does not say it."""

    text: str
    """`model_type` of the part on text."""
    is_tied: bool
    """Whether the output projection is the embeddings."""
    has_head: bool = False
    """Whether the part on text is a model with a head of its own in transformers."""


_WRAPPERS = {
    "Gemma3ForConditionalGeneration": _Wrapper("gemma3_text", True),
    "Gemma4ForConditionalGeneration": _Wrapper("gemma4_text", True),
    "LlavaForConditionalGeneration": _Wrapper("llama", False),
    "Qwen3_5ForConditionalGeneration": _Wrapper("qwen3_5_text", False),
    "Qwen3_5MoeForConditionalGeneration": _Wrapper("qwen3_5_moe_text", False),
    "Llama4ForConditionalGeneration": _Wrapper("llama4_text", False, has_head=True),
    "Mistral3ForConditionalGeneration": _Wrapper("mistral", True),
}
"""Class in `architectures` of config.json -> what holds for it."""

_TEXT = re.compile(r"(?:model\.)?language_model\.(?:model\.(?!language_model\.))?(.+)")


def unwrapped(hf: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns the part of config.json on text as a config.json of its own, and the class of the whole.

    Of a model that is text only, it is config.json itself, and an empty string. Whether the head is tied is for the
    whole to say: transformers ignores what the part says of it.
    """
    classes = hf.get("architectures")
    name = next((c for c in classes if isinstance(c, str) and c in _WRAPPERS), "") if isinstance(classes, list) else ""
    text = hf.get("text_config")
    if not name or not isinstance(text, dict):
        return hf, ""
    tied = hf.get("tie_word_embeddings", _WRAPPERS[name].is_tied)
    text = {"model_type": _WRAPPERS[name].text, **text, "tie_word_embeddings": tied}
    return {key: value for key, value in text.items() if key != "architectures"}, name


def text_names(available: Iterable[str]) -> dict[str, str]:
    """Returns the names of the decoder's tensors as a checkpoint of text alone has them -> as they are stored.

    Files have `language_model.model.layers` or `model.language_model.layers`, by the version that wrote them.
    """
    found = {}
    for stored in available:
        if match := _TEXT.fullmatch(stored):
            rest = match[1]
            found[rest if rest.startswith("lm_head.") else f"model.{rest}"] = stored
        elif stored.startswith("lm_head."):
            found[stored] = stored
    return found


def name_of_text(name: str) -> str | None:
    """Returns the name of a module or tensor of the decoder as a model of text alone has it; None for other parts."""
    found = text_names([f"{name}."])  # so that the head's module is told as its tensors are
    return next(iter(found))[:-1] if found else None


def name_in_whole(name: str, wrapper: str) -> str:
    """Returns the name of a module or tensor of the decoder in the multimodal model, as transformers 4.52 and later do.

    Args:
        name: as a model of text alone has it, such as `model.layers.0.mlp`; a part of one that begins otherwise stays.
        wrapper: class of the multimodal model.
    """
    if not name.startswith(("model.", "lm_head")):
        return name
    return (
        f"language_model.{name}" if _WRAPPERS[wrapper].has_head else re.sub(r"^model\.", "model.language_model.", name)
    )
