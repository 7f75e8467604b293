"""A task's settings for generation: how the text is sampled, and where it ends."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from lit_gpt.errors import UserError
from lit_gpt.generation.request import Sampling

_WITHOUT_EFFECT = {"num_beams": 1, "num_return_sequences": 1}
"""Settings of tasks that this toolkit lacks, with the value at which they change nothing."""
_ALWAYS = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_SAMPLED = {"top_k": None, "top_p": 1.0, "min_p": 0.0}
"""Settings that matter if texts are sampled only, with the value that stands for none."""


class Settings(NamedTuple):
    """How the texts of a task's questions are generated."""

    until: tuple[str, ...]
    """Strings that end a text."""
    max_new_tokens: int
    min_new_tokens: int
    sampling: Sampling


def generation_settings(given: dict[str, Any], default: int) -> Settings:
    """Returns what a task's `generation_kwargs` ask for.

    Args:
        default: number of new tokens for a task that does not say.

    Raises:
        UserError: the task asks for a kind of sampling that we do not have.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    kwargs: dict[str, Any] = dict(normalize_gen_kwargs(given, default))
    max_new_tokens = kwargs.pop("max_gen_toks")
    temperature = kwargs.pop("temperature", 1.0)
    sampled = kwargs.pop("do_sample") and temperature > 0
    values: dict[str, Any] = {"temperature": temperature if sampled else 0}
    for key, none in (_ALWAYS | _SAMPLED).items():
        value = kwargs.pop(key, None)
        ignored = value is None or (key == "top_k" and value == 0) or (key in _SAMPLED and not sampled)
        values[key] = none if ignored else value
    until, min_new_tokens = kwargs.pop("until"), kwargs.pop("min_new_tokens", None) or 0
    for key, value in kwargs.items():
        if value is not None and value != _WITHOUT_EFFECT.get(key):
            raise UserError(f"a task asks for generation with {key}={value!r}, which this toolkit does not have")
    try:
        return Settings(tuple(s for s in until if s), max_new_tokens, min_new_tokens, Sampling(**values))
    except UserError as e:
        raise UserError(f"a task's generation_kwargs: {str(e).removeprefix('--')}") from e


def cut(text: str, until: Sequence[str]) -> str:
    """Returns `text` up to its first stop string."""
    return text[: min((at for s in until if (at := text.find(s)) >= 0), default=None)]
