"""HELM's endpoints: `/process`, and texts to tokens and back as its window service needs them.

HELM counts tokens by `/tokenize` and takes so many of those that `/process` returns, from the end of the text. So both
are the tokens of the text alone: the token that begins texts is fed to the model, but is not among them. HELM writes
`<|endoftext|>` before a text that follows nothing; where the tokenizer has no such token, it stands for the one that
begins texts.
"""

import time
from typing import Any

from lit_gpt.generation.engine import Answer
from lit_gpt.generation.request import Request, Sampling, Scored
from lit_gpt.serve.models import Served
from lit_gpt.serve.planning import CHARACTERS, Plan, Prompt, special_stops, start_of
from lit_gpt.serve.schemas.helm import ProcessBody
from lit_gpt.serve.schemas.sampling import MOST_LOGPROBS, is_greedy
from lit_gpt.serve.scores import finite, top_of
from lit_gpt.serve.service import Service

MOST_TOKENS = 2_048
"""Tokens after which `/tokenize` cuts a text, unless the request says otherwise: those of the challenge."""
_START = "<|endoftext|>"
"""How HELM writes the token before a text that follows nothing."""
_DEFAULT_TOKENS, _DEFAULT_TEMPERATURE, _DEFAULT_TOP_K = 50, 0.8, 200
"""What the challenge takes for fields that a request does not name."""
_MOST_TRIES = 16
"""Times that a text is shortened because it would be tokenized into more tokens than it came from."""


def tokens_of(service: Service, text: str) -> list[int]:
    """Returns the tokens of a text as HELM counts them, without any that the text does not have."""
    if text.startswith(_START) and _START not in service.pieces.added:
        rest = text[len(_START) :]
        return start_of(service) + (service.tokenizer.encode(rest, bos=False) if rest else [])
    return service.tokenizer.encode(text, bos=False)


def text_of(service: Service, ids: list[int]) -> str:
    """Returns the text of tokens, which is tokenized into no more than they are.

    Bytes of a character that the ids cut through are left out: each would come back as three tokens. If the text still
    has more tokens, as it may where it is cut between words, its end is left out.
    """
    for n in range(len(ids), max(0, len(ids) - _MOST_TRIES), -1):
        text = _joined(service, ids[:n])
        if len(tokens_of(service, text)) <= len(ids):
            return text
    return service.tokenizer.decode(ids)


def _joined(service: Service, ids: list[int]) -> str:
    """Returns the text of tokens with special ones written out, the first of a text as HELM writes it."""
    if ids and _START not in service.pieces.added and ids[:1] == start_of(service):
        return _START + _joined_after(service, ids[1:])
    return _joined_after(service, ids)


def _joined_after(service: Service, ids: list[int]) -> str:
    if service.pieces.special.isdisjoint(ids):
        return service.tokenizer.decode(ids).replace("\ufffd", "")
    return service.pieces.joined(ids)


def plan(service: Service, body: ProcessBody, served: Served) -> Plan:
    """Returns what the engine is asked for; tokenizes, so it belongs on a thread of its own.

    A prompt that is too long is cut on the left, as the challenge wants.
    """
    wanted = _DEFAULT_TOKENS if body.max_new_tokens is None else body.max_new_tokens
    wanted = min(wanted, service.block_size - 1)
    given = body.prompt[-service.block_size * CHARACTERS :]  # more cannot fit, and reading it would hold up all others
    own = tokens_of(service, given)
    begun = service.tokenizer.frame(own, bos=None, eos=False) or start_of(service)
    n_before = len(begun) - len(own)  # tokens that are fed and are not the text's
    room = service.block_size + (wanted == 0) - wanted
    ids = begun if len(begun) <= room else begun[:n_before] + begun[n_before:][-(room - n_before) :]
    names = special_stops(service, [s for s in body.stop_sequences or () if s])
    n_top = min(body.top_k_per_token or 1, MOST_LOGPROBS)
    request = Request(
        ids=ids,
        max_new_tokens=wanted,
        sampling=_sampling(body),
        stop=tuple(s for s in body.stop_sequences or () if s),
        stop_ids=service.tokenizer.stop_ids | names.keys(),
        logprobs=n_top,
        prompt_logprobs=n_top if body.echo_prompt else None,
        run=served.run,
    )
    text = given if len(ids) == len(begun) else _joined(service, ids[n_before:])
    return Plan(served, [Prompt(ids[n_before:], text)], [request], names)


def _sampling(body: ProcessBody) -> Sampling:
    """Returns how tokens are drawn: HELM's client names no `top_k`, and samples from all tokens."""
    temperature = _DEFAULT_TEMPERATURE if body.temperature is None else body.temperature
    is_helms = body.top_k_per_token is not None or body.top_p is not None
    top_k = body.top_k or (None if is_helms or body.top_k == 0 else _DEFAULT_TOP_K)
    return Sampling(
        temperature=0 if is_greedy(temperature) else temperature,
        top_k=top_k,
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-9),
        seed=None if body.seed is None else body.seed % 2**63,
    )


def answered(service: Service, body: ProcessBody, made: Plan, answer: Answer, started: float) -> dict[str, Any]:
    """Returns the answer in the challenge's form.

    Tokens whose text a stop string cut off, and the token that ended the text, are left out: what HELM reads is text
    and tokens that agree.
    """
    prompt = made.prompts[0]
    text, tokens = answer.text, _within(service, answer)
    if body.echo_prompt:
        text = prompt.text + text
        n = len(prompt.ids)
        tokens = list(answer.prompt[len(answer.prompt) - n :] if n else ()) + tokens
    shown = [
        {
            "text": service.pieces.text(t.id),
            "logprob": 0.0 if t.logprob is None else finite(t.logprob),
            "top_logprob": top_of(t, service.pieces),
        }
        for t in tokens
    ]
    return {
        "text": text,
        "tokens": shown,
        "logprob": sum(t["logprob"] for t in shown),
        "request_time": time.monotonic() - started,
    }


def _within(service: Service, answer: Answer) -> list[Scored]:
    """Returns the generated tokens that the text has at least a byte of."""
    left = len(answer.text.encode())
    found: list[Scored] = []
    for token in answer.tokens:
        if answer.finish == "stop" and token is answer.tokens[-1] and isinstance(answer.stop_reason, int):
            break
        if left <= 0 and isinstance(answer.stop_reason, str):
            break
        found.append(token)
        if token.id not in service.pieces.special:
            left -= len(service.pieces.of(token.id))
    return found
