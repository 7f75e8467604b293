"""Texts to tokens and back: HELM's endpoints and vLLM's, of which `/tokenize` is one path for both."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lit_gpt.serve.schemas.openai import Message
from lit_gpt.serve.schemas.sampling import Count, TokenId


class TokenizeBody(BaseModel):
    """A text to tokenize: `text` as HELM sends it, `prompt` or `messages` as vLLM's clients do; exactly one of them.

    `text` gets no special tokens and may be cut on the right; `prompt` gets those that the model wants before a text.
    """

    model_config = ConfigDict(extra="allow", strict=True)
    text: str | None = None
    truncation: bool | None = None
    max_length: Count | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    model: str | None = None


class HelmTokens(BaseModel):
    """Token ids of a `text`."""

    tokens: list[int]
    request_time: float


class VllmTokens(BaseModel):
    """Token ids of a `prompt` or of `messages`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class IdsBody(BaseModel):
    """Token ids whose text is wanted."""

    model_config = ConfigDict(extra="allow", strict=True)
    tokens: list[TokenId]


class HelmText(BaseModel):
    """The text of token ids: tokenized again it has at most as many tokens."""

    text: str
    request_time: float


class VllmText(BaseModel):
    """The text of token ids, special ones written out."""

    prompt: str


class TokenizerInfo(BaseModel):
    """What a client has to know to count tokens and to write conversations itself."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str
    pad_token: str | None
    chat_template: str | None
    add_bos_token: bool
    vocab_size: int
    max_model_len: int


class Health(BaseModel):
    """Whether the server takes requests."""

    status: Literal["ok"]
