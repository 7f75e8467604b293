"""Exchanges of a text in which the chat template marks, by `{% generation %}`, what the assistant wrote."""

from collections.abc import Callable, Sequence

from lit_gpt.prompts.ends import Ending
from lit_gpt.prompts.environment import Span
from lit_gpt.prompts.shown import n_same
from lit_gpt.prompts.turns import Exchange, Turn


def marked_exchanges(
    whole: str, spans: Sequence[Span], turns: Sequence[Turn], ending: Ending, shown: Callable[[int], str]
) -> list[Exchange]:
    """Returns one exchange for each marked part, with the text before it as its prompt.

    An answer may have several parts. Marked white space after the end of an answer is supervised with it, but not after
    the last answer: generation stops before it.

    Args:
        whole: the text that the template makes of `turns`.
        shown: returns the text of the first n turns.
    """
    parts = sorted((start, end) for start, end in spans if start < end)
    owners = _owners(whole, parts, turns, shown)
    found: list[Exchange] = []
    done, before = 0, -1
    for i, ((start, end), turn) in enumerate(zip(parts, owners, strict=True)):
        taught, continues = turns[turn].taught, turn == before
        text, token, rest = _cut(whole[start:end], ending, is_last=owners[i + 1 : i + 2] != [turn])
        found.append(
            Exchange(whole[done:start], text, end=token, taught=taught, ended=token is not None, continues=continues)
        )
        if rest:
            found.append(Exchange("", rest, None, taught, ended=False, continues=True))
        done, before = end, turn
    while len(found) > 1 and not (found[-1].ended or found[-1].prompt or (found[-1].answer or "").strip()):
        found.pop()
    return found


def _cut(part: str, ending: Ending, is_last: bool) -> tuple[str, str | None, str]:
    """Splits a marked part into (answer, token that ends it, white space after that); without a token, all is answer.

    Args:
        is_last: whether the part is the last one of its answer; any added token may end it then, as after tool calls.
    """
    text = part.rstrip()
    ends = [token for token in ending.known if text.endswith(token)]
    if is_last and not ends:
        ends = [m[0] for m in ending.added.finditer(text) if m.end() == len(text)]
    if not ends:
        return part, None, ""
    token = max(ends, key=len)
    return text.removesuffix(token), token, part[len(text) :]


def _owners(whole: str, parts: Sequence[Span], turns: Sequence[Turn], shown: Callable[[int], str]) -> list[int]:
    """Returns the turn that each marked part belongs to."""
    answers = [i for i, t in enumerate(turns) if t.role == "assistant"]
    one_each = len(parts) == len(answers)
    if one_each and all(turns[i].text.strip() in whole[a:b] for i, (a, b) in zip(answers, parts, strict=True)):
        return answers
    begins = [0, *(n_same(whole, shown(i)) for i in answers[1:])]
    return [max((i for i, at in zip(answers, begins, strict=True) if at <= a), default=answers[0]) for a, _ in parts]
