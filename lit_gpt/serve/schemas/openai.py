"""OpenAI's endpoints: texts to continue, conversations to answer, and the list of models."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lit_gpt.serve.refusals import Refusal
from lit_gpt.serve.schemas.sampling import (
    MOST_CHOICES,
    MOST_LOGPROBS,
    Count,
    FinishReason,
    PromptLogprobs,
    SamplingFields,
    TokenId,
    Usage,
)

_MOST_PROMPTS = 2_048
"""Most prompts of a request, as OpenAI has it."""

_Ids = Annotated[list[TokenId], Field(min_length=1)]
_Prompts = (
    str
    | _Ids
    | Annotated[list[str], Field(min_length=1, max_length=_MOST_PROMPTS)]
    | Annotated[list[_Ids], Field(min_length=1, max_length=_MOST_PROMPTS)]
)


class CompletionBody(SamplingFields):
    """Texts to continue or to score."""

    prompt: _Prompts = ""
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    suffix: str | None = None

    def require_known(self) -> None:
        super().require_known()
        if self.suffix:
            raise Refusal(400, "suffix: this server does not insert texts", "suffix", "unsupported")
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise Refusal(400, f"best_of {self.best_of} is less than n {self.n or 1}", "best_of")
        if self.stream and self.best_of is not None and self.best_of > (self.n or 1):
            raise Refusal(400, "best_of cannot be streamed: which texts are best is known at their end", "best_of")


class _Part(BaseModel):
    """A part of a message's content; only text is known."""

    model_config = ConfigDict(extra="allow")
    type: Annotated[str, Field(max_length=100)]
    text: str | None = None


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="allow", strict=True)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ChatBody(SamplingFields):
    """A conversation to answer."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    echo: bool | None = None

    def require_known(self) -> None:
        super().require_known()
        if self.echo:
            raise Refusal(400, "echo: a conversation has no echo; /v1/completions has", "echo", "unsupported")
        if self.top_logprobs and not self.logprobs:
            raise Refusal(400, "top_logprobs goes with logprobs: true", "top_logprobs")
        is_begun = self.messages[-1].role == "assistant"
        if is_begun and self.continue_final_message is False:
            field = "continue_final_message"
            raise Refusal(400, f"{field}: the last message is the assistant's, which is continued", field)
        if not is_begun and (self.continue_final_message or self.add_generation_prompt is False):
            field = "continue_final_message" if self.continue_final_message else "add_generation_prompt"
            raise Refusal(400, f"{field}: the last message is not the assistant's, so an answer begins", field)


class _Logprobs(BaseModel):
    """Log-probabilities of a text's tokens; a token that is no whole character is written `bytes:\\xe2\\x96`."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class _CompletionChoice(BaseModel):
    """A text."""

    index: int
    text: str
    logprobs: _Logprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    prompt_logprobs: PromptLogprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(BaseModel):
    """The texts of a request; with `stream`, they come in parts as server-sent events, closed by `data: [DONE]`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[_CompletionChoice]
    usage: Usage


class _Alternative(BaseModel):
    """A token that is among the most likely ones."""

    token: str
    logprob: float
    bytes: list[int] | None


class _TokenLogprob(_Alternative):
    """A token of an answer."""

    top_logprobs: list[_Alternative]


class _ChatLogprobs(BaseModel):
    """Log-probabilities of an answer's tokens."""

    content: list[_TokenLogprob]
    refusal: None


class _Answered(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class _ChatChoice(BaseModel):
    """An answer."""

    index: int
    message: _Answered
    logprobs: _ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    token_ids: list[int] | None = None


class ChatCompletion(BaseModel):
    """The answers to a conversation; with `stream` they come in parts, as those of a completion do."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[_ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class Model(BaseModel):
    """A model that requests can name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class Models(BaseModel):
    """All models that requests can name; the first one answers those that name none."""

    object: Literal["list"]
    data: list[Model]
