"""What HELM's client sends to a submission, and what it needs of the answers.

The fields and values are those that crfm-helm 0.5.16 was seen to send to `neurips/local`; docs/helm.md says more.
"""

import math
from collections.abc import Callable
from typing import Any

from lit_gpt.errors import UserError, shown

HEALTH = {"prompt": "The capital of France is "}
"""The health check of the challenge, as its harness sends it to /process."""
CONTEXT = 2_048
"""Tokens that HELM takes a model of the challenge to have room for."""
Ask = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Function that posts a body to a path and returns the answer."""
_SHOT = "Question: Which of these do llamas eat most of the time?\nA. grass\nB. stones\nC. paper\nD. tin\nAnswer: A\n\n"
_SUM = (
    "Q: A baker bakes twelve loaves in the morning and eight in the afternoon, and sells fifteen. How many are left?\n"
    "A: He bakes 12 + 8 = 20 loaves. He sells 15, so 20 - 15 = 5 are left. The answer is 5.\n\n"
)
_NEWS = (
    "The town council met on Monday to speak about the new bridge, which is to be built before the end of the year. "
)
PROMPTS = {
    "multiple choice": f"{_SHOT * 5}Question: Number {{n}} follows which number?\nA. {{n}}\nB. none\nAnswer:",
    "generation": f"{_SUM * 2}Q: What is {{n}} and 7?\nA:",
    "arithmetic": f"{_SUM * 5}Q: Ann has {{n}} apples and buys 7 more. How many has she?\nA:",
    "summary": f"###\nArticle {{n}}: {_NEWS * 40}\n\nSummarize the above article in 3 sentences.\n",
}
"""Kind of request -> its prompt, with a place for a number that makes each another one."""
_DEFAULTS = {
    "prompt": "",
    "temperature": 1e-07,
    "num_return_sequences": 1,
    "max_new_tokens": 5,
    "top_p": 1.0,
    "echo_prompt": False,
    "top_k_per_token": 1,
    "stop_sequences": [],
}
"""The eight fields that HELM sends; a temperature of 0 arrives like this."""
_FIELDS = {
    "multiple choice": {"max_new_tokens": 1, "top_k_per_token": 5},
    "generation": {"max_new_tokens": 64, "stop_sequences": ["\n"]},
    "arithmetic": {"max_new_tokens": 400, "stop_sequences": ["\n\n"]},
    "summary": {"max_new_tokens": 128, "stop_sequences": ["###"], "temperature": 0.3},
}


def request_of(kind: str, n: int) -> dict[str, Any]:
    """Returns the eight fields that HELM sends for the n-th request of a kind."""
    return _DEFAULTS | {"prompt": PROMPTS[kind].replace("{n}", str(n))} | _FIELDS[kind]


def replay(ask: Ask) -> int:
    """Sends one request of each kind and what HELM's tokenizer asks, and returns how many it sent.

    Raises:
        UserError: an answer lacks what HELM reads, or contradicts itself.
    """
    for kind in PROMPTS:
        body = request_of(kind, 1)
        found = require_processed(ask("/process", body), f"{kind}: /process")
        for stop in body["stop_sequences"]:
            if stop in found["text"]:
                raise UserError(
                    f"{kind}: /process goes on after the stop string {stop!r}, and HELM scores what follows"
                )
        if len(found["tokens"]) > body["max_new_tokens"]:
            raise UserError(
                f"{kind}: /process wrote {len(found['tokens'])} tokens, and {body['max_new_tokens']} were asked"
            )
    n = len(PROMPTS) + _replay_scoring(ask) + _replay_tokens(ask)
    require_processed(ask("/process", HEALTH), "/process with the prompt alone")
    return n + 1


def require_processed(found: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns an answer of /process after checking what HELM reads of it; raises UserError if that is not there."""
    kinds = {"text": str, "tokens": list, "logprob": int | float, "request_time": int | float}
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind):
            raise UserError(f"{where}: {key} is {shown(found.get(key))}, and HELM reads it")
    for token in found["tokens"]:
        value = token.get("logprob") if isinstance(token, dict) else None
        is_number = isinstance(value, int | float) and math.isfinite(value) and value <= 1e-6
        if not is_number or not isinstance(token.get("text"), str):
            raise UserError(f"{where}: {shown(token)} is no token with its text and a log-probability")
    total = sum(token["logprob"] for token in found["tokens"])
    if not math.isclose(total, found["logprob"], rel_tol=1e-3, abs_tol=1e-3):
        raise UserError(f"{where}: logprob is {found['logprob']:.4g}, and that of the tokens adds up to {total:.4g}")
    return found


def _replay_scoring(ask: Ask) -> int:
    """Scores two answers to a question, as multiple_choice_separate does: the text comes back, with its tokens."""
    for answer in ("grass", "stones"):
        prompt = f"Question: What do llamas eat?\nAnswer: {answer}"
        body = _DEFAULTS | {"prompt": prompt, "max_new_tokens": 0, "echo_prompt": True}
        found = require_processed(ask("/process", body), "scoring: /process")
        if found["text"] != prompt:
            raise UserError(f"scoring: /process was to echo the prompt, and its text is {shown(found['text'])}")
        counted = len(_ids(ask, {"text": prompt, "truncation": False, "max_length": CONTEXT}))
        if len(found["tokens"]) != counted:
            raise UserError(f"scoring: /process has {len(found['tokens'])} tokens for a text of {counted} by /tokenize")
    return 4


def _replay_tokens(ask: Ask) -> int:
    """Counts and cuts a text that is too long, as HELM's window service does."""
    text = _NEWS * 200
    all_ids = _ids(ask, {"text": text, "truncation": False, "max_length": CONTEXT})
    if len(all_ids) <= CONTEXT:
        raise UserError(
            f"/tokenize cuts at {len(all_ids):,} tokens although truncation is false, and HELM counts by it"
        )
    cut = _ids(ask, {"text": text, "truncation": True, "max_length": CONTEXT})
    if cut != all_ids[:CONTEXT]:
        raise UserError(f"/tokenize with truncation has {len(cut):,} tokens, and not the first {CONTEXT:,}")
    found = ask("/decode", {"tokens": cut})
    if not isinstance(found.get("text"), str) or not isinstance(found.get("request_time"), int | float):
        raise UserError("/decode has no text or no request_time, and HELM reads both")
    again = len(_ids(ask, {"text": found["text"], "truncation": False, "max_length": CONTEXT}))
    if again > CONTEXT:
        raise UserError(
            f"/decode of {CONTEXT:,} tokens is tokenized into {again:,}, so that HELM sends a request a character"
        )
    return 4


def _ids(ask: Ask, body: dict[str, Any]) -> list[int]:
    """Returns the tokens of a text; raises UserError if the answer has none."""
    found = ask("/tokenize", body)
    ids = found.get("tokens")
    has_time = isinstance(found.get("request_time"), int | float)
    if not has_time or not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise UserError(f"/tokenize answers {shown(found)}, and HELM reads a list of numbers and request_time")
    return ids
