"""What the engine is asked, and what it answers: plain data that every door shares (chat, server, lm-eval, scripts)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lit_gpt.args.require import require
from lit_gpt.args.sampling import require_ranges

Finish = Literal["stop", "length", "cancelled", "error"]
"""Why a text ended: at a stop string or stop token, at its length, because nobody wants it any more, or by an error."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from its logits.

    The order is that of vLLM and transformers: logit_bias and penalties change the logits, temperature divides them,
    then top_k, top_p and min_p remove tokens, and one of the rest is drawn.

    Raises:
        UserError: a value is out of its range.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: int | None = None
    """Draw from the k most likely tokens only; None from all."""
    top_p: float = 1.0
    """Draw from the most likely tokens whose probabilities together reach top_p, the one that reaches it included."""
    min_p: float = 0.0
    """Draw from tokens that are at least min_p times as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Logits of tokens that the prompt or the text has are divided by it if positive, multiplied if negative."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the generated text has."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token once for each time that the generated text has it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> summand of its logit."""
    seed: int | None = None
    """Seed of the request's own random generator; None draws one."""

    def __post_init__(self) -> None:
        require_ranges(self)


GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class Request:
    """One text to continue or to score.

    Several texts for one prompt are several requests: the engine computes what they begin alike once.

    Raises:
        UserError: a number is negative.
    """

    ids: Sequence[int]
    """Token ids of the prompt, at least one."""
    max_new_tokens: int
    """Most tokens to generate; 0 only scores the prompt."""
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    """Strings that end the text; they may lie across token borders."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the text. The token itself is in `Delta.tokens`, its text is not in `Delta.text`."""
    min_new_tokens: int = 0
    """Tokens before which stop strings and stop tokens do not end the text; stop tokens are not drawn before."""
    keeps_stop: bool = False
    """Whether the text ends with the stop string that ended it."""
    logprobs: int | None = None
    """Log-probabilities of the generated tokens, with those of so many most likely tokens; None computes none."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens; None computes none."""
    prompt_logprobs_from: int = 0
    """Index of the first token of the prompt that is scored: earlier ones may be read from the cache."""
    run: str | None = None
    """Name of the finetuned run that answers; None is the base model, or the engine's only model."""
    continuations: tuple[Sequence[int], ...] = ()
    """Texts, of a token or more each, that are scored as what follows the prompt. What they begin alike is computed
    once. With them, nothing is generated and the prompt is not scored."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "min_new_tokens", "logprobs", "prompt_logprobs", "prompt_logprobs_from"):
            require(name, getattr(self, name) or 0, at_least=0)
        assert not self.continuations or (self.max_new_tokens == 0 and self.prompt_logprobs is None)
        assert all(map(len, self.continuations)), "a continuation without tokens has no score"


class Scored(NamedTuple):
    """A token with its log-probability given the tokens before it, from the model's own logits in fp32.

    Penalties, temperature and the like are not in it. `logprob` and `top` come from one tensor: `is_greedy` is true
    exactly if no token's log-probability is larger.
    """

    id: int
    logprob: float | None = None
    """None if it was not asked for, and for the first token of a prompt, which follows nothing."""
    is_greedy: bool = False
    top: tuple[tuple[int, float], ...] = ()
    """(id, log-probability) of the most likely tokens, most likely first."""


class Delta(NamedTuple):
    """What is new of a request's answer; the last one has a `finish`."""

    text: str = ""
    """New text. It never ends within a character or within what may become a stop string."""
    tokens: tuple[Scored, ...] = ()
    """New tokens, the one that ended the text included."""
    prompt: tuple[Scored, ...] = ()
    """The prompt's tokens from `prompt_logprobs_from` on, once, if they are scored."""
    finish: Finish | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token that ended the text."""
    error: str = ""
    """One line for the user if `finish` is error."""
    n_cached: int = 0
    """Tokens of the prompt that were read from the cache; in the first delta."""
    continuations: tuple[tuple[Scored, ...], ...] = ()
    """The scores of the request's continuations, in their order, once."""
