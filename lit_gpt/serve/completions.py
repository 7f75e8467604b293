"""`/v1/completions`: continues texts, or scores them."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from lit_gpt.generation.engine import Answer
from lit_gpt.generation.request import Delta
from lit_gpt.serve.planning import Plan, Prompt, fitting, requests_for, require_readable, special_stops, start_of
from lit_gpt.serve.refusals import dumped
from lit_gpt.serve.schemas.openai import CompletionBody
from lit_gpt.serve.scores import Counter, completion_logprobs, prompt_logprobs
from lit_gpt.serve.service import Service
from lit_gpt.serve.usage import Usage
from lit_gpt.serve.writing import SpecialText

_DEFAULT_TOKENS = 16
"""Tokens that OpenAI's endpoint generates if a request names no number."""


def plan(service: Service, body: CompletionBody) -> Plan:
    """Returns what the engine is asked for; tokenizes, so it belongs on a thread of its own.

    Raises:
        Refusal: the request wants what we do not have, or does not fit.
        UserError: a text cannot be tokenized.
    """
    body.require_known()
    served = service.models.find(body.model)
    wanted = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    best_of = body.best_of or body.n or 1
    scores = body.logprobs if best_of == (body.n or 1) else body.logprobs or 0
    echoed = body.logprobs if body.echo else None
    about_prompt = echoed if body.prompt_logprobs is None else max(body.prompt_logprobs, echoed or 0)
    names = special_stops(service, body.stops())
    made = Plan(served, _prompts(service, body, wanted), stop_names=names)
    for prompt in made.prompts:
        made.requests.extend(
            requests_for(
                prompt.ids,
                body,
                served,
                n=best_of,
                max_new_tokens=wanted,
                stop_ids=service.tokenizer.stop_ids,
                stop_names=names,
                logprobs=scores,
                prompt_logprobs=about_prompt,
            )
        )
    return made


def _prompts(service: Service, body: CompletionBody, wanted: int) -> list[Prompt]:
    """Returns the prompts of a request, tokenized and cut."""
    given: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if isinstance(given[0], int):
        given = [given]
    found: list[Prompt] = []
    pairs: list[tuple[list[int], str | None]]
    if isinstance(given[0], str):
        require_readable(service, max(map(len, given)), body)
        encoded = service.tokenizer.encode_batch(given, bos=False if body.add_special_tokens is False else None)
        pairs = [(ids or start_of(service), text) for ids, text in zip(encoded, given, strict=True)]
    else:
        pairs = [(ids, None) for ids in given]
    for whole, text in pairs:
        ids, _ = fitting(service, whole, body, wanted)
        if body.echo and (text is None or len(ids) < len(whole)):
            text = service.pieces.joined(ids) if body.skip_special_tokens is False else service.tokenizer.decode(ids)
        found.append(Prompt(ids, text or ""))
    return found


class Choice:
    """Writes one text, whole or in parts.

    Args:
        index: number of the text in the answer.
    """

    def __init__(self, service: Service, body: CompletionBody, made: Plan, prompt: Prompt, index: int) -> None:
        self.pieces, self.body, self.prompt, self.index = service.pieces, body, prompt, index
        self.stop_names = made.stop_names
        skips = body.skip_special_tokens is not False
        self.counter = Counter(service.pieces, skips)
        keeps = bool(body.include_stop_str_in_output)
        self.special = None if skips else SpecialText(service.pieces, body.stops(), keeps)
        self.has_begun = False

    def part(self, new: Delta | Answer) -> dict[str, Any]:
        """Returns what is new of the text as a choice."""
        text = new.text if self.special is None else self.special.push(new.tokens, new.finish, new.stop_reason)
        tokens, first = new.tokens, not self.has_begun
        self.has_begun = True
        scored_prompt = new.prompt
        if first and self.body.echo:
            text = self.prompt.text + text
            tokens = scored_prompt + tokens
        reason = new.stop_reason
        choice: dict[str, Any] = {
            "index": self.index,
            "text": text,
            "logprobs": None,
            "finish_reason": new.finish,
            "stop_reason": self.stop_names.get(reason, reason) if isinstance(reason, int) else reason,
        }
        if self.body.logprobs is not None:
            choice["logprobs"] = completion_logprobs(tokens, self.pieces, self.counter)
        if self.body.prompt_logprobs is not None and first:
            choice["prompt_logprobs"] = prompt_logprobs(scored_prompt, self.pieces)
        if self.body.return_token_ids:
            choice["token_ids"] = [t.id for t in new.tokens]
            if first:
                choice["prompt_token_ids"] = list(self.prompt.ids)
        return choice


def head(made: Plan) -> dict[str, Any]:
    """Returns the keys that the answer and all parts of a stream begin with."""
    name, now = made.served.name, int(time.time())
    return {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": now, "model": name}


def _whole(service: Service, body: CompletionBody, made: Plan, answers: Sequence[Answer]) -> dict[str, Any]:
    """Returns the answer to a request that does not stream, as an object."""
    n, best_of = body.n or 1, body.best_of or body.n or 1
    usage, choices = Usage(), []
    for i, prompt in enumerate(made.prompts):
        group = list(answers[i * best_of : (i + 1) * best_of])
        usage.add(prompt.ids, group)
        scores = group[0].prompt
        if best_of > n:
            group = sorted(group, key=_mean_logprob, reverse=True)[:n]
        for answer in group:
            choice = Choice(service, body, made=made, prompt=prompt, index=len(choices))
            choices.append(choice.part(answer._replace(prompt=scores)))
    return head(made) | {"choices": choices, "usage": usage.shown()}


def _mean_logprob(answer: Answer) -> float:
    """Returns the mean log-probability of a text's tokens, by which the best of several is chosen."""
    found = [t.logprob or 0.0 for t in answer.tokens]
    return sum(found) / max(1, len(found))


def dumped_whole(service: Service, body: CompletionBody, made: Plan, answers: Sequence[Answer]) -> bytes:
    """Returns the answer to a request that does not stream, as JSON."""
    return dumped(_whole(service, body, made, answers))
