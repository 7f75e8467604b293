"""`/v1/chat/completions`: answers conversations in the prompt style of the model."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.generation.conversation import asked
from lit_gpt.generation.engine import Answer
from lit_gpt.generation.request import Delta
from lit_gpt.prompts import Turn
from lit_gpt.serve.models import Served
from lit_gpt.serve.planning import Plan, Prompt, fitting, requests_for, require_readable, special_stops, start_of
from lit_gpt.serve.refusals import Refusal, dumped
from lit_gpt.serve.schemas.openai import ChatBody, Message
from lit_gpt.serve.scores import chat_logprobs, prompt_logprobs
from lit_gpt.serve.service import Service
from lit_gpt.serve.usage import Usage
from lit_gpt.serve.writing import SpecialText


def plan(service: Service, body: ChatBody) -> Plan:
    """Returns what the engine is asked for; renders and tokenizes, so it belongs on a thread of its own.

    Raises:
        Refusal: the request wants what we do not have, does not fit, or the prompt style refuses it.
    """
    body.require_known()
    served = service.models.find(body.model)
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    require_readable(service, sum(map(_n_characters, body.messages)), body)
    ids, ends = rendered(service, served, body.messages, body.chat_template_kwargs)
    ids, most = fitting(service, ids, body, wanted)
    names = special_stops(service, body.stops())
    requests = requests_for(
        ids,
        body,
        served,
        n=body.n or 1,
        max_new_tokens=most,
        stop_ids=ends,
        stop_names=names,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
    )
    return Plan(served, [Prompt(ids, "")], requests, names)


def rendered(
    service: Service, served: Served, messages: Sequence[Message], kwargs: dict[str, Any] | None
) -> tuple[list[int], frozenset[int]]:
    """Returns the tokens of a conversation as the model is asked, and those that end its answer.

    Raises:
        Refusal: there is no prompt style, or it refuses the conversation.
    """
    style = served.chat_style(kwargs)
    turns = [_turn(m, i) for i, m in enumerate(messages)]
    if len(turns) == 1 and turns[0].role == "assistant":
        raise Refusal(400, "messages: an answer that is begun needs a turn before it", "messages")
    try:
        found = asked(style, service.tokenizer, turns, end_ids=served.end_ids)
    except UserError as e:
        raise Refusal(400, str(e), "messages") from e
    return found.ids or start_of(service), found.stop_ids


def _n_characters(message: Message) -> int:
    """Returns the number of characters of a message."""
    content = message.content or ""
    return len(content) if isinstance(content, str) else sum(len(part.text or "") for part in content)


def _turn(message: Message, index: int) -> Turn:
    """Returns a message as a turn; raises Refusal if it has parts that are not text."""
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type not in ("text", "input_text", "output_text") or part.text is None:
                where = f"messages.{index}.content"
                raise Refusal(400, f"{where}: a part of type {part.type} is not text, and text is all that this server "
                              "takes", "messages", "unsupported")  # fmt: skip
        content = "".join(part.text or "" for part in content)
    extra = {k: v for k in ("name", "tool_calls", "tool_call_id") if (v := getattr(message, k)) is not None}
    role = "system" if message.role == "developer" else message.role
    return Turn(role, content or "", extra=extra)


class Choice:
    """Writes one answer, whole or in parts."""

    def __init__(self, service: Service, body: ChatBody, made: Plan, index: int) -> None:
        self.pieces, self.body, self.index, self.stop_names = service.pieces, body, index, made.stop_names
        keeps = bool(body.include_stop_str_in_output)
        shows = body.skip_special_tokens is False
        self.special = SpecialText(service.pieces, body.stops(), keeps) if shows else None

    def part(self, new: Delta | Answer, key: str) -> dict[str, Any]:
        """Returns what is new of the answer as a choice.

        Args:
            key: `message` for a whole answer, `delta` for a part of a stream.
        """
        text = new.text if self.special is None else self.special.push(new.tokens, new.finish, new.stop_reason)
        reason = new.stop_reason
        shown = {"role": "assistant", "content": text, "refusal": None} if key == "message" else {"content": text}
        choice: dict[str, Any] = {
            "index": self.index,
            key: shown,
            "logprobs": chat_logprobs(new.tokens, self.pieces) if self.body.logprobs else None,
            "finish_reason": new.finish,
            "stop_reason": self.stop_names.get(reason, reason) if isinstance(reason, int) else reason,
        }
        if self.body.return_token_ids:
            choice["token_ids"] = [t.id for t in new.tokens]
        return choice


def head(made: Plan, kind: str = "chat.completion") -> dict[str, Any]:
    """Returns the keys that the answer and all parts of a stream begin with."""
    name, now = made.served.name, int(time.time())
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": now, "model": name}


def about_prompt(service: Service, body: ChatBody, made: Plan, first: Answer | Delta) -> dict[str, Any]:
    """Returns what the request asks to be told of its prompt."""
    found: dict[str, Any] = {}
    if body.prompt_logprobs is not None:
        found["prompt_logprobs"] = prompt_logprobs(first.prompt, service.pieces)
    if body.return_token_ids:
        found["prompt_token_ids"] = list(made.prompts[0].ids)
    return found


def _whole(service: Service, body: ChatBody, made: Plan, answers: Sequence[Answer]) -> dict[str, Any]:
    """Returns the answer to a request that does not stream, as an object."""
    usage = Usage()
    usage.add(made.prompts[0].ids, answers)
    choices = [Choice(service, body, made, i).part(answer, "message") for i, answer in enumerate(answers)]
    return head(made) | {"choices": choices, "usage": usage.shown()} | about_prompt(service, body, made, answers[0])


def dumped_whole(service: Service, body: ChatBody, made: Plan, answers: Sequence[Answer]) -> bytes:
    """Returns the answer to a request that does not stream, as JSON."""
    return dumped(_whole(service, body, made, answers))
