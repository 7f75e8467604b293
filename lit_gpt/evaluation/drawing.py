"""A task's settings for generation: how the text is sampled, and where it ends."""

from typing import Any

from lit_gpt.errors import UserError

_WITHOUT_EFFECT = {"top_p": 1, "num_beams": 1, "repetition_penalty": 1, "num_return_sequences": 1}
"""Settings of tasks that this toolkit lacks, with the value at which they change nothing."""


def generation_settings(given: dict[str, Any], default: int, room: int) -> dict[str, Any]:
    """Returns the keyword arguments of `LitLM.complete` for a task's `generation_kwargs`.

    Args:
        default: number of new tokens for a task that does not say.
        room: number of tokens that fit the model, those of the question included.

    Raises:
        UserError: the task asks for a kind of sampling that we do not have, or for more tokens than fit.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    kwargs: dict[str, Any] = dict(normalize_gen_kwargs(given, default))
    max_new_tokens = kwargs.pop("max_gen_toks")
    if max_new_tokens >= room:
        raise UserError(
            f"a task asks for {max_new_tokens} new tokens, and the model has room for {room} with the "
            "question; ask for fewer (max_gen_toks) in a YAML file of your own: --task_path"
        )
    temperature = kwargs.pop("temperature", 1.0)
    sampled = kwargs.pop("do_sample") and temperature > 0
    settings = {
        "until": [s for s in kwargs.pop("until") if s],
        "max_new_tokens": max_new_tokens,
        "temperature": temperature if sampled else 0,
        "top_k": kwargs.pop("top_k", None) or None,
    }
    for key, value in kwargs.items():
        neutral = value is None or value == _WITHOUT_EFFECT.get(key) or (key == "top_p" and not sampled)
        if not neutral:
            raise UserError(f"a task asks for generation with {key}={value!r}, which this toolkit does not have")
    return settings


def cut(text: str, until: list[str]) -> str:
    """Returns `text` up to its first stop string."""
    return text[: min((at for s in until if (at := text.find(s)) >= 0), default=None)]
