"""How a task wants a text to be drawn from the model, and where the text ends."""

from typing import Any

from lit_gpt.errors import UserError

_WITHOUT_EFFECT = {"top_p": 1, "num_beams": 1, "repetition_penalty": 1, "num_return_sequences": 1}
"""Settings of tasks that we do not have, and the value at which they change nothing."""


def generation_settings(given: dict[str, Any], default: int, room: int) -> dict[str, Any]:
    """Keyword arguments of `LitLM.complete` for the `generation_kwargs` of a task.

    Args:
        default: new tokens of a task that does not say how many.
        room: tokens of the model, the question's included.

    Raises:
        UserError: a way of sampling that we do not have, or more tokens than fit.
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
    """`text` up to its first stop string."""
    return text[: min((at for s in until if (at := text.find(s)) >= 0), default=None)]
