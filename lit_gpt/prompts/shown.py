"""Checks that a chat template shows what a conversation says."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.prompts.messages import calls_of, name_of, thought_of
from lit_gpt.prompts.turns import Exchange, Turn

_TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_BEGUN = re.compile(r"[<\[][^<>\[\]\s]*\Z")
"""Pattern of a tag at the end of a text that is opened and not closed."""


def n_same(a: str, b: str) -> int:
    """Returns the length of the common prefix of two texts."""
    same, other = 0, min(len(a), len(b)) + 1
    while other - same > 1:  # the first `same` characters are equal, the first `other` ones are not
        middle = (same + other) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            other = middle
    return same


def after_prompt(asked: str, whole: str, since: int) -> tuple[str, str] | None:
    """Returns (end of `asked` that the template does not show before the answer, the answer with all that follows it).

    The first is normally empty. It is not if the prompt ends with a thought, closed or open, that the template does not
    show in an answered conversation (Gemma 4, DeepSeek R1).

    Args:
        asked: text of the conversation, with what asks for the answer.
        whole: text of the conversation with the answer.
        since: offset in `asked` at which the conversation ends.

    Returns:
        None if `whole` shows the conversation itself differently than `asked` does.
    """
    if whole.startswith(asked):
        return "", whole[len(asked) :]
    same = n_same(asked, whole)
    if same < since:
        return None
    if begun := _BEGUN.search(whole, since, same):  # two different tags may begin alike
        same = begun.start()
    opening, tail = asked[same:], whole[same:]
    tags = [m.start() for m in _TAG.finditer(opening)]
    for end in (len(opening), *reversed(tags)):  # the answer may repeat a part of the opening
        if end and tail.lstrip().startswith(begins := opening[:end].lstrip()):
            return opening[end:], tail.lstrip().removeprefix(begins)
    shared = next((opening[i:] for i in tags if tail.startswith(opening[i:])), "")
    return opening, tail.removeprefix(shared)


def answer_after(opening: str, answer: str, text: str, folder: Any) -> str:
    """Returns the text that is supervised after a prompt ending in `opening`, which the template shows in no answer.

    An answer that begins with the same thought continues it, even if the template drops thoughts.

    Args:
        answer: the answer as the template shows it.
        text: the answer as the data set's row has it.

    Raises:
        UserError: the prompt has closed the thought already, and the answer has another.
    """
    begun = opening.strip()
    if begun and text.startswith(begun):
        shown = answer.lstrip()  # the end of the text, perhaps with tool calls after it
        since = next((i for i in range(len(begun), len(text)) if shown.startswith(text[i:])), len(text))
        return text[len(begun) :].lstrip("\n") + shown[len(text) - since :]
    tags = _TAG.findall(opening)
    if tags and tags[-1] in answer:
        raise UserError(
            f"the chat template of {folder} asks for an answer with {opening!r}, where a thought has ended, and the "
            "answer has a thought; leave it out, or let --template_kwargs ask for thoughts"
        )
    return answer


def require_shown(
    render: Callable[[Sequence[Turn], Sequence[Mapping[str, Any]]], str],
    folder: Any,
    turns: Sequence[Turn],
    tools: Sequence[Mapping[str, Any]],
    answers: Mapping[int, str],
) -> None:
    """Checks that the template shows tools, calls, tool results, and the supervised answers with their thoughts.

    Args:
        answers: supervised text of the answers, by turn.

    Raises:
        UserError: the template does not show one of them, which the message names.
    """

    def hidden(others: Sequence[Turn], schemas: Sequence[Mapping[str, Any]]) -> bool:
        """Returns whether another conversation gives the same text; one that is refused does not."""
        try:
            return render(others, schemas) == whole
        except UserError:
            return False

    tool_turns = [i for i, t in enumerate(turns) if t.role == "tool"]
    calls = [i for i, t in enumerate(turns) if calls_of(t)]
    whole = render(turns, tools) if tools or tool_turns or calls else ""
    without = [replace(t, extra={k: v for k, v in t.extra.items() if k != "tool_calls"}) for t in turns]
    lost = ["tool_calls"] if calls and hidden(without, tools) else []
    if tools and (lost or not calls) and hidden(turns, ()):  # where calls are shown, `left_out` looks for the tools
        lost.append("tools")
    other = [replace(t, text=t.text + " and so on") if t.role == "tool" else t for t in turns]
    lost += ["turns of the role tool"] if tool_turns and hidden(other, tools) else []
    for i in calls if not lost else []:
        names = filter(None, map(name_of, calls_of(turns[i])))
        lost += [f"the tool_calls of turn {i + 1} ({name})" for name in names if name not in answers.get(i, whole)]
    for i, answer in answers.items():
        if lost:  # reporting one is enough
            break
        words = re.findall(r"\w+|\S", turns[i].text)
        if words and not calls_of(turns[i]) and not any(word in answer for word in words):
            lost.append(f"the text of turn {i + 1}")
        if _squeezed(thought_of(turns[i])) not in _squeezed(answer):
            lost.append(f"the reasoning_content of turn {i + 1}")
    if lost:
        raise UserError(
            f"the chat template of {folder} does not show {', '.join(lost)}; take a model whose template does, or "
            "leave it out"
        )


def left_out(turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]], exchanges: Sequence[Exchange]) -> list[str]:
    """Returns which kinds of text (`system text`, `question`, ...) are not whole in the training text, each once.

    Unsupervised answers are not checked, because templates drop old thoughts.
    """
    shown = _Shown(_squeezed("".join(e.prompt + (e.answer or "") for e in exchanges)))
    prompts = "".join(e.prompt for e in exchanges)
    kinds = {"system": "system text", "user": "question"}
    found = [
        kinds[t.role]
        for t in turns
        if t.role in kinds and not all(_squeezed(text) in shown for text in (t.text, t.context))
    ]
    if turns[-1].role == "assistant" and _squeezed(turns[-1].text) not in shown:
        found.append("answer")
    if not all(name_of(tool) in prompts for tool in tools):
        found.append("tools")
    return list(dict.fromkeys(found))


class _Shown:
    """A text in which many others are looked up that follow one another in it, mostly."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def __contains__(self, part: str) -> bool:
        at = self.text.find(part, self.at)
        if at < 0:
            return part in self.text
        self.at = at + len(part)
        return True


def _squeezed(text: str) -> str:
    """Returns a text without white space, which templates add and strip."""
    return "".join(text.split())
