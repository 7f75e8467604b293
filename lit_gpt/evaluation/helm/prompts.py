"""Prompts as HELM writes them: solved examples, the question, and what is left out where that is too long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from random import Random

from lit_gpt.evaluation.helm.instances import TRAIN, Instance

_WINDOW = 2048
"""Tokens that HELM lets a prompt and its answer have together, whatever the model."""


@dataclass(frozen=True)
class Adapter:
    """How a scenario's questions become prompts, and how the answers are generated."""

    is_multiple_choice: bool
    """Whether the answers are listed under letters, and the letter is asked for."""
    instructions: str = ""
    input_prefix: str = "Input: "
    input_suffix: str = "\n"
    output_prefix: str = "Output: "
    output_suffix: str = "\n"
    n_shots: int = 5
    max_tokens: int = 1
    temperature: float = 0.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A question with the text that asks it."""

    instance: Instance
    text: str


def prompts(adapter: Adapter, train: Sequence[Instance], asked: Sequence[Instance], window: "Window") -> list[Prompt]:
    """Returns the prompts of questions, all with the same solved examples.

    Args:
        train: what the examples are drawn from; what is not for training is left out.
    """
    shots = [
        _block(adapter, shot, solved=True)
        for shot in _examples([instance for instance in train if instance.split == TRAIN], adapter.n_shots)
    ]
    found = []
    for instance in asked:
        question = _block(adapter, instance, solved=False)
        found.append(Prompt(instance, window.fitted(adapter.instructions, shots, question, adapter.max_tokens)))
    return found


def letter(i: int) -> str:
    """Returns the letter of the answer at an index."""
    return chr(ord("A") + i)


def _block(adapter: Adapter, instance: Instance, solved: bool) -> str:
    """Returns a question's part of a prompt, with its answer or up to where it begins."""
    text = adapter.input_prefix + instance.text + adapter.input_suffix
    answer = "n/a" if instance.answer is None else instance.answer
    if adapter.is_multiple_choice:
        text += "".join(f"{letter(i)}. {r.text}\n" for i, r in enumerate(instance.references))
        answer = next((letter(i) for i, r in enumerate(instance.references) if r.is_correct), "n/a")
    ending = adapter.output_prefix + answer + adapter.output_suffix if solved else adapter.output_prefix.rstrip()
    return text + ending


def _examples(train: Sequence[Instance], n: int) -> list[Instance]:
    """Returns the solved examples that HELM draws: one of each answer in turn, answers that many have first."""
    rng = Random(0)
    n = min(n, len(train))
    by_answer: dict[str, list[Instance]] = {}
    rest: list[Instance] = []
    for instance in train:
        answer = instance.answer
        (rest if answer is None else by_answer.setdefault(answer, [])).append(instance)
    by_count: dict[int, list[str]] = {}
    for answer in sorted(by_answer):
        by_count.setdefault(len(by_answer[answer]), []).append(answer)
    order: list[str] = []
    for count in sorted(by_count, reverse=True):
        rng.shuffle(by_count[count])
        order += by_count[count]
    found: list[Instance] = []
    n_solved = min(n, len(train) - len(rest))
    for answer in cycle(order):
        if len(found) == n_solved:
            break
        if pool := by_answer[answer]:
            found.append(pool.pop(rng.randrange(len(pool))))
    return found + rng.sample(rest, n - len(found))


class Window:
    """Makes prompts fit into what HELM sends at once.

    Args:
        encode: text to tokens, without any that the text does not have.
        decode: tokens to a text.
    """

    def __init__(
        self, encode: Callable[[str], list[int]], decode: Callable[[list[int]], str], size: int = _WINDOW
    ) -> None:
        self.encode, self.decode, self.size = encode, decode, size

    def fitted(self, instructions: str, shots: Sequence[str], question: str, n_new: int) -> str:
        """Returns a prompt with as many of the first examples as fit; one that still does not is cut on the right."""
        head = [instructions] if instructions else []
        for n in range(len(shots), 0, -1):
            text = "\n".join([*head, *shots[:n], question])
            if self._fits(text, n_new):
                return text
        text = "\n".join([*head, question])
        cut = self.decode(self.encode(text)[: self.size - n_new])
        while not self._fits(cut, n_new):
            cut = cut[:-1]
        return cut if len(cut) < len(text) and cut else text

    def _fits(self, text: str, n_new: int) -> bool:
        return len(self.encode(text)) + n_new <= self.size
