"""HELM's `/process`, in the words of HELM's client and in those of the challenge of 2023."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from lit_gpt.serve.schemas.sampling import Count, Seed, Stop


class ProcessBody(BaseModel):
    """A prompt to continue or to score.

    HELM's client calls the number of texts `num_return_sequences`, that of log-probabilities `top_k_per_token`, and
    sends `top_p` and `stop_sequences`; the challenge has `num_samples`, `top_k` (of sampling) and `seed`. One text
    comes back.
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    prompt: str
    temperature: Annotated[float, Field(ge=0, le=1e6)] | None = None
    max_new_tokens: Count | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    echo_prompt: bool | None = None
    num_return_sequences: Count | None = None
    top_k_per_token: Count | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=64)] | None = None
    num_samples: Count | None = None
    top_k: Count | None = None
    seed: Seed | None = None


class _HelmToken(BaseModel):
    """A token of the answer; one that is no whole character is written `bytes:\\xe2\\x96`, as HELM reads it."""

    text: str
    logprob: float
    top_logprob: dict[str, float]


class Processed(BaseModel):
    """The text, with its tokens, the sum of their log-probabilities, and the seconds that it took."""

    text: str
    tokens: list[_HelmToken]
    logprob: float
    request_time: float
