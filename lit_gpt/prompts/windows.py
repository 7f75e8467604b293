"""Where the answers of a long conversation stand in its text, which need not be shown anew for each of them."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from lit_gpt.prompts.turns import Turn

Place = tuple[int, str]
"""Where an answer begins, and what the template puts after the text that asks for it."""


def exact_place(
    whole: str, turns: Sequence[Turn], i: int, render: Callable[[Sequence[Turn], bool], str]
) -> Place | None:
    """The place of the answer that is turn i; None if `whole` does not go on from the text that asks for it.

    Args:
        whole: the text of all turns.
        render: gives the text of turns, and perhaps what asks for the next answer.
    """
    asked = render(turns[:i], True)
    if not whole.startswith(asked):
        return None
    answered = render(turns[: i + 1], False)
    return (len(asked), answered[len(asked) :]) if answered.startswith(asked) else None


def places_by_windows(
    whole: str, turns: Sequence[Turn], answers: Sequence[int], render: Callable[[Sequence[Turn], bool], str]
) -> dict[int, Place] | None:
    """The places of many answers, each found in a short conversation: the first exchange and the one around the answer.

    What the template puts between two answers there has to stand at the same place in `whole`, or the template is one
    that looks further back or ahead. Answers at growing distances, and the last, are held against `exact_place`, too.

    Args:
        answers: the turns that are looked for, in their order.

    Returns:
        None if an answer is not where it should be: then each has to be looked for in its whole conversation.
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
