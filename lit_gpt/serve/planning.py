"""Makes what the engine is asked out of the fields of a request."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from lit_gpt.generation.request import Request
from lit_gpt.serve.models import Served
from lit_gpt.serve.refusals import Refusal
from lit_gpt.serve.schemas.sampling import SamplingFields
from lit_gpt.serve.service import Service

CHARACTERS = 64
"""Characters of a token, of which no text has more in the mean."""


@dataclass(frozen=True)
class Prompt:
    """A text that is to be continued."""

    ids: list[int]
    text: str
    """The text that an echo shows."""


@dataclass(frozen=True)
class Plan:
    """What the engine is asked for one HTTP request, with what is needed to write the answer."""

    served: Served
    prompts: Sequence[Prompt]
    requests: list[Request] = field(default_factory=list)
    """The texts of the first prompt, then those of the second one ..."""
    stop_names: dict[int, str] = field(default_factory=dict)
    """Stop strings that are a special token, by its id."""


def start_of(service: Service) -> list[int]:
    """Returns the token that an empty prompt stands for."""
    tokenizer = service.tokenizer
    return [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id]


def special_stops(service: Service, stops: Sequence[str]) -> dict[int, str]:
    """Returns the stop strings that are a special token, by its id: a text leaves them out, so they stop it by that."""
    return {service.tokenizer.token_to_id(s): s for s in stops if s in service.pieces.added}


def require_readable(service: Service, n: int, body: SamplingFields) -> None:
    """Checks that a prompt of `n` characters may fit: reading the tokens of a longer one would hold up all others.

    Raises:
        Refusal: it cannot fit into the model's context, unless it is to be cut.
    """
    most = service.block_size * CHARACTERS
    if n > most and body.truncate_prompt_tokens is None:
        raise Refusal(
            400,
            f"this model has room for {service.block_size:,} tokens, and the prompt has {n:,} characters; one of more "
            f"than {most:,} is not read unless the request sends truncate_prompt_tokens",
            "messages" if hasattr(body, "messages") else "prompt",
            "context_length_exceeded",
        )


def fitting(service: Service, ids: list[int], body: SamplingFields, wanted: int | None) -> tuple[list[int], int]:
    """Returns the tokens of a prompt, cut on the left if the request says so, and the most tokens that may follow.

    Args:
        wanted: most tokens that the request asks for; None for the server's default.

    Raises:
        Refusal: they do not fit into the model's context.
    """
    most = service.block_size
    if body.truncate_prompt_tokens is not None:
        keep = body.truncate_prompt_tokens
        keep = max(1, most - (wanted or 0)) if keep == -1 else keep
        ids = ids[-keep:] if keep else start_of(service)
    if len(ids) + (wanted or 0) > most:
        asked = "" if wanted is None else f" ({len(ids):,} in the prompt, {wanted:,} to be generated)"
        raise Refusal(
            400,
            f"this model has room for {most:,} tokens, and the request has {len(ids) + (wanted or 0):,}{asked}; "
            "shorten the prompt, ask for fewer tokens, or send truncate_prompt_tokens",
            "messages" if hasattr(body, "messages") else "prompt",
            "context_length_exceeded",
        )
    if wanted is None:
        wanted = min(service.limits.max_new_tokens, most - len(ids))
    return ids, wanted


def requests_for(
    ids: list[int],
    body: SamplingFields,
    served: Served,
    *,
    n: int,
    max_new_tokens: int,
    stop_ids: Collection[int],
    stop_names: Collection[int],
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> list[Request]:
    """Returns what the engine is asked for the `n` texts of a prompt.

    Args:
        stop_ids: tokens that end the text unless the request ignores them.
        stop_names: tokens that the request's stop strings name.
        logprobs, prompt_logprobs: as in `Request`; of several texts that do not come as a stream, only the first one
            scores the prompt.
    """
    ends = frozenset((*(() if body.ignore_eos else stop_ids), *stop_names, *(body.stop_token_ids or ())))
    return [
        Request(
            ids=ids,
            max_new_tokens=max_new_tokens,
            sampling=body.sampling(i),
            stop=body.stops(),
            stop_ids=ends,
            min_new_tokens=min(body.min_tokens or 0, max_new_tokens),
            keeps_stop=bool(body.include_stop_str_in_output),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs if i == 0 or body.stream else None,
            run=served.run,
        )
        for i in range(n)
    ]
