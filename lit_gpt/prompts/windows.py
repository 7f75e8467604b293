"""Locations of the answers in the text of a long conversation, found without rendering it again for each of them."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from lit_gpt.prompts.turns import Turn

Place = tuple[int, str]
"""Offset at which an answer begins, and what the template puts after the prompt that asks for it."""


def exact_place(
    whole: str, turns: Sequence[Turn], i: int, render: Callable[[Sequence[Turn], bool], str]
) -> Place | None:
    """Returns the location of the answer that is turn i; None if `whole` does not begin with its prompt.

    Args:
        whole: the text of all turns.
        render: returns the text of turns, with what asks for the next answer if its second argument is true.
    """
    asked = render(turns[:i], True)
    if not whole.startswith(asked):
        return None
    answered = render(turns[: i + 1], False)
    return (len(asked), answered[len(asked) :]) if answered.startswith(asked) else None


def places_by_windows(
    whole: str, turns: Sequence[Turn], answers: Sequence[int], render: Callable[[Sequence[Turn], bool], str]
) -> dict[int, Place] | None:
    """Returns the locations of many answers, each found in a short conversation.

    That is the first exchange followed by those around the answer. What the template puts between two answers there
    must stand at the same offset in `whole`; otherwise the template depends on turns further away. The last answer and
    those at growing distances are also compared with `exact_place`.

    Args:
        answers: indices of the turns to locate, in order.

    Returns:
        None if an answer is not where it should be; each then has to be located in the whole conversation.
    """
    users = [i for i, t in enumerate(turns) if t.role == "user"]
    head = turns[: next((i for i in users if i > answers[0]), len(turns))]
    first = [i for i in answers if i < len(head)]
    found = {i: location for i in first if (location := exact_place(whole, turns, i, render))}
    if len(found) < len(first):
        return None
    for before, i in zip(answers[len(first) - 1 :], answers[len(first) :], strict=False):
        begin, again = (users[bisect_left(users, of) - 1] for of in (before, i))
        asked, later = (render([*head, *turns[begin:to]], True) for to in (before, i))
        asks = later if again == begin else render([*head, *turns[again:i]], True)
        answered = render([*head, *turns[again : i + 1]], False)
        between, at = later[len(asked) :], found[before][0]
        fits = later.startswith(asked) and answered.startswith(asks) and whole.startswith(between, at)
        if not fits:
            return None
        found[i] = at + len(between), answered[len(asks) :]
    checked = [answers[-1], *(answers[2**n] for n in range(len(answers).bit_length()) if 2**n < len(answers))]
    return found if all(exact_place(whole, turns, i, render) == found[i] for i in checked) else None
