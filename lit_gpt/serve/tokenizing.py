"""Texts to tokens and back, as vLLM's clients ask for it, and what they have to know of the tokenizer."""

import time
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.prompts import read_template
from lit_gpt.serve import helm
from lit_gpt.serve.chat import rendered
from lit_gpt.serve.refusals import Refusal
from lit_gpt.serve.schemas.tokens import TokenizeBody
from lit_gpt.serve.service import Service


def tokenized(service: Service, body: TokenizeBody) -> dict[str, Any]:
    """Returns the tokens of a text or of a conversation, in the form of whoever asks; belongs on a thread of its own.

    Raises:
        Refusal: not exactly one of `text`, `prompt` and `messages` is given.
    """
    started = time.monotonic()
    given = [name for name in ("text", "prompt", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        raise Refusal(400, f"send one of text, prompt and messages; got {', '.join(given) or 'none of them'}")
    served = service.models.find(body.model)
    if body.text is not None:
        ids = helm.tokens_of(service, body.text)
        if body.truncation is not False:
            ids = ids[: helm.MOST_TOKENS if body.max_length is None else body.max_length]
        return {"tokens": ids, "request_time": time.monotonic() - started}
    if body.messages is not None:
        ids, _ = rendered(service, served, body.messages, body.chat_template_kwargs)
    else:
        bos = False if body.add_special_tokens is False else None
        ids = service.tokenizer.encode(body.prompt or "", bos=bos)
    texts = [service.pieces.text(i) for i in ids] if body.return_token_strs else None
    return {"count": len(ids), "max_model_len": service.block_size, "tokens": ids, "token_strs": texts}


def require_tokens(service: Service, ids: list[int]) -> None:
    """Checks that ids are those of tokens; raises Refusal if not."""
    n = service.tokenizer.vocab_size
    if wrong := next((i for i in ids if i >= n), None):
        raise Refusal(400, f"tokens: {wrong} is not one of the tokenizer's {n:,} tokens", "tokens")


def written_out(service: Service, ids: list[int]) -> str:
    """Returns the text of tokens, special ones written out."""
    if service.pieces.special.isdisjoint(ids):
        return service.tokenizer.decode(ids)
    return service.pieces.joined(ids)


def tokenizer_info(service: Service) -> dict[str, Any]:
    """Returns what a client has to know to count tokens and to write conversations itself."""
    tokenizer = service.tokenizer
    try:
        template = read_template(tokenizer.path.parent)
    except UserError:
        template = None
    eos = tokenizer.id_to_token(tokenizer.eos_id) or ""
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "bos_token": None if tokenizer.bos_id is None else tokenizer.id_to_token(tokenizer.bos_id),
        "eos_token": eos,
        "pad_token": eos,
        "chat_template": template,
        "add_bos_token": tokenizer.use_bos,
        "vocab_size": tokenizer.vocab_size,
        "max_model_len": service.block_size,
    }
