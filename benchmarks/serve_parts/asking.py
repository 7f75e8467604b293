"""What the clients of the serving benchmark ask, and how: prompts as HELM and chats send them, over HTTP."""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx

_SHOTS = 5
_PATIENCE = 600


class Asked(NamedTuple):
    """A request, and where it goes."""

    path: str
    body: dict[str, Any]


class Got(NamedTuple):
    """What came of requests that were sent together."""

    seconds: float
    answers: list[dict[str, Any]]


def multiple_choice(rows: Sequence[dict[str, Any]], n: int, seed: int) -> list[Asked]:
    """Returns `n` questions as HELM asks them: five answered ones first, the same for all, and letters for answers.

    Args:
        rows: questions in the schema of TruthfulQA's on the hub.
        seed: chooses the questions, the five, and the order of the answers.
    """
    draw = random.Random(seed)
    texts = [_lettered(row, draw) for row in draw.sample(rows, _SHOTS + n)]
    shots = "".join(f"{question} {letter}\n\n" for question, letter in texts[:_SHOTS])
    common = {"temperature": 1e-7, "num_return_sequences": 1, "max_new_tokens": 1, "top_p": 1, "echo_prompt": False}
    common |= {"top_k_per_token": 5, "stop_sequences": []}
    return [Asked("/process", {"prompt": shots + question, **common}) for question, _ in texts[_SHOTS:]]


def _lettered(row: dict[str, Any], draw: random.Random) -> tuple[str, str]:
    """Returns a question with its answers by letter, and the letter of the true one."""
    answers = list(zip(row["mc1_targets"]["choices"], row["mc1_targets"]["labels"], strict=True))
    draw.shuffle(answers)
    letters = [chr(ord("A") + i) for i in range(len(answers))]
    lines = [f"{letter}. {text}" for letter, (text, _) in zip(letters, answers, strict=True)]
    true = next(letter for letter, (_, label) in zip(letters, answers, strict=True) if label)
    return "\n".join([f"Question: {row['question']}", *lines, "Answer:"]), true


def chats(text: str, n: int, seed: int) -> list[Asked]:
    """Returns `n` conversations of mixed lengths: of a text, 10 to 400 words in and 16 to 128 tokens out."""
    draw = random.Random(seed)
    words = text.split()
    found = []
    for _ in range(n):
        length, at = round(10 * 40 ** draw.random()), draw.randrange(len(words) - 400)
        passage = " ".join(words[at : at + length])
        body = {"messages": [{"role": "user", "content": f"Go on with this story: {passage}"}], "temperature": 0}
        body |= {"max_tokens": round(16 * 8 ** draw.random()), "ignore_eos": True, "return_token_ids": True}
        found.append(Asked("/v1/chat/completions", body))
    return found


def ask(url: str, asked: Sequence[Asked], clients: int) -> Got:
    """Sends requests by so many clients, each of which waits for its answer before it sends the next one."""
    return asyncio.run(_ask(url, asked, clients))


async def _ask(url: str, asked: Sequence[Asked], clients: int) -> Got:
    answers: dict[int, dict[str, Any]] = {}
    left = iter(enumerate(asked))
    async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE, limits=httpx.Limits(max_connections=clients)) as http:

        async def work() -> None:
            for i, (path, body) in left:
                response = await http.post(path, json=body)
                assert response.status_code == 200, f"{response.status_code}: {response.text[:500]}"
                answers[i] = response.json()

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        seconds = time.perf_counter() - started
    return Got(seconds, [answers[i] for i in range(len(asked))])
