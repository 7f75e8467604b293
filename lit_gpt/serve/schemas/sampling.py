"""The fields about sampling and stopping that OpenAI's two endpoints share, with those that vLLM's clients add."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lit_gpt.generation.request import Sampling
from lit_gpt.serve.refusals import Refusal

MOST_CHOICES = 64
"""Most texts for one prompt."""
MOST_LOGPROBS = 20
"""Most alternatives of a token whose log-probabilities are returned, as OpenAI has it."""
_GREEDY = 1e-5
"""Temperature up to which sampling is greedy, as in vLLM; HELM sends 1e-7 where a task wants 0."""
_MOST_STOPS = 64

Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Stop = Annotated[str, Field(max_length=1_000)]

_LACKED = {
    "tools": "tool calls",
    "tool_choice": "tool calls",
    "functions": "function calls",
    "function_call": "function calls",
    "guided_json": "guided decoding",
    "guided_regex": "guided decoding",
    "guided_choice": "guided decoding",
    "guided_grammar": "guided decoding",
    "grammar": "guided decoding",
    "json_schema": "guided decoding",
    "structured_outputs": "guided decoding",
    "allowed_token_ids": "a list of allowed tokens",
    "bad_words": "a list of banned words",
    "use_beam_search": "beam search",
    "num_beams": "beam search",
    "best_of": "choice of the best answers to a conversation",
    "typical_p": "typical sampling",
    "top_a": "sampling by top_a",
    "tfs": "tail-free sampling",
    "tfs_z": "tail-free sampling",
    "epsilon_cutoff": "cut-off of unlikely tokens but min_p",
    "eta_cutoff": "cut-off of unlikely tokens but min_p",
    "mirostat": "Mirostat",
    "mirostat_mode": "Mirostat",
    "xtc_probability": "XTC",
    "dry_multiplier": "penalty of repeated runs of tokens",
    "no_repeat_ngram_size": "ban of repeated runs of tokens",
    "penalty_alpha": "contrastive search",
    "repeat_penalty": "penalty of that name; repetition_penalty is one",
    "return_tokens_as_token_ids": "tokens written as token_id:; return_token_ids returns them beside the text",
    "audio": "audio",
    "modalities": "answers but text",
    "prediction": "predicted outputs",
    "web_search_options": "a search of the web",
    "prompt_embeds": "embeddings as a prompt",
    "documents": "documents",
    "chat_template": "a chat template of the request",
    "logits_processors": "processors of logits",
    "thinking_token_budget": "a budget of thoughts",
}
"""Fields that would change the answer and that this server does not know, each with what it asks for."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("best_of", "num_beams", "repeat_penalty", "tfs", "tfs_z", "typical_p"), (1,)),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    "modalities": (["text"],),
}
"""Values with which such a field changes nothing, besides null, false, zero and what is empty."""


class _ResponseFormat(BaseModel):
    """The form that the answer shall have; only plain text can be asked for."""

    model_config = ConfigDict(extra="allow")
    type: str = "text"


class _StreamOptions(BaseModel):
    """What a streamed answer has besides its text."""

    model_config = ConfigDict(extra="allow", strict=True)
    include_usage: bool | None = None
    """Whether a last chunk says the numbers of tokens."""


class SamplingFields(BaseModel):
    """Fields about sampling and stopping. Null is as if a field were left out; fields that are not known are ignored,
    unless they ask for what this server cannot do."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: Annotated[str, Field(max_length=1_000)] | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=1e6)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop | None], Field(max_length=_MOST_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=_MOST_STOPS)] | None = None
    include_stop_str_in_output: bool | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _ResponseFormat | None = None

    def require_known(self) -> None:
        """Checks that the request wants nothing that this server cannot do; raises Refusal by the field's name."""
        for name, value in (self.model_extra or {}).items():
            if name in _LACKED and value not in (None, False, [], {}, *_NEUTRAL.get(name, ())):
                raise Refusal(400, f"{name}: this server does not have {_LACKED[name]}", name, "unsupported")
        if self.response_format is not None and self.response_format.type != "text":
            raise Refusal(
                400,
                f"response_format: only text can be asked for, not {self.response_format.type[:40]}",
                "response_format",
                "unsupported",
            )
        if self.stream_options is not None and not self.stream:
            raise Refusal(400, "stream_options goes with stream: true", "stream_options")

    def stops(self) -> tuple[str, ...]:
        """Returns the strings that end a text; an empty one ends none."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(dict.fromkeys(s for s in given if s))

    def sampling(self, index: int = 0) -> Sampling:
        """Returns how the tokens of a text are drawn.

        Args:
            index: number of the text among those of the same prompt, which draw from different seeds.

        Raises:
            Refusal: a key of logit_bias is no token.
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(
            temperature=0 if is_greedy(temperature) else temperature,
            top_k=self.top_k if self.top_k and self.top_k > 0 else None,
            top_p=1.0 if self.top_p is None else max(self.top_p, 1e-9),  # 0 stands for the most likely token
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias={_token_of(key): bias for key, bias in (self.logit_bias or {}).items()},
            seed=None if self.seed is None else (self.seed + index) % 2**63,
        )


def _token_of(key: str) -> int:
    """Returns the id that a key of logit_bias writes; raises Refusal if it is none."""
    if key.isascii() and key.isdigit() and len(key) <= 10:
        return int(key)
    raise Refusal(400, f"logit_bias: {key[:40]!r} is no token id", "logit_bias")


def is_greedy(temperature: float) -> bool:
    """Returns whether a temperature is so low that it stands for greedy decoding."""
    return temperature <= _GREEDY


class _ErrorDetail(BaseModel):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error in OpenAI's form."""

    error: _ErrorDetail


class _PromptDetails(BaseModel):
    """How much of a prompt was in the cache."""

    cached_tokens: int


class Usage(BaseModel):
    """Numbers of tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptDetails


PromptLogprobs = list[dict[str, Any] | None]
"""For each token of the prompt, token id -> logprob, rank and decoded_token; null for the first one."""
FinishReason = Literal["stop", "length"]
