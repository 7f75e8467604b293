"""Answers to many questions, by one process or by several that have the same model each."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from lit_gpt.evaluation.drawing import Settings
from lit_gpt.evaluation.scoring import scores
from lit_gpt.evaluation.writing import Writer
from lit_gpt.generation.batching.runs import SharedRun
from lit_gpt.model import GPT
from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.tokenizer import Tokenizer

_T = TypeVar("_T")
_Texts = Mapping[int, tuple[Sequence[int], int]]


class Answerer:
    """Answers what it is asked; with several processes, the leader asks, and all answer a part of it.

    Texts that are drawn at random are written by the leader alone: they are the same on any number of devices.

    Args:
        batch_size: most texts that are computed at once; None takes what fits.
        autocast: context of every forward pass.
        run: a LoRA run that answers in place of `model`, which is its base.
        team: the processes; those that do not lead call `follow`.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        batch_size: int | None,
        autocast: Callable[[], AbstractContextManager[Any]],
        run: SharedRun | None = None,
        team: Team = ALONE,
    ) -> None:
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.autocast, self.run, self.team = autocast, run, team

    def scores(self, asked: _Texts) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Yields what `scoring.scores` does."""
        return self._dealt("_scores", asked, {i: ids for i, (ids, _) in asked.items()})

    def texts(
        self, questions: Mapping[int, list[int]], settings: Settings, stop_ids: frozenset[int]
    ) -> Iterator[tuple[int, str]]:
        """Yields what `Writer.texts` does."""
        if settings.sampling.temperature > 0:
            return self._texts(questions, settings, stop_ids)
        return self._dealt("_texts", questions, questions, settings, stop_ids)

    def follow(self) -> None:
        """Answers this process's parts of what the leader is asked, until that has no more questions."""
        task: Any = None
        while (task := self.team.lead(task)) is not None:
            how, hands, rest = task
            self.team.every(list(getattr(self, how)(hands[self.team.rank], *rest)))

    def finish(self) -> None:
        """Lets the other processes go on."""
        self.team.lead(None)

    def _dealt(
        self, how: str, asked: Mapping[int, Any], texts: Mapping[int, Sequence[int]], *rest: Any
    ) -> Iterator[tuple[int, Any]]:
        """Yields the answers of all processes, those of this one as they are computed.

        Args:
            how: name of the method that answers.
            texts: token ids of what is asked, by which it is dealt.
            rest: further arguments of that method.
        """
        if self.team.is_alone:
            yield from getattr(self, how)(asked, *rest)
            return
        hands = [{i: asked[i] for i in hand} for hand in _hands(texts, self.team.size)]
        self.team.lead((how, hands, rest))
        yield from getattr(self, how)(hands[0], *rest)
        for answers in self.team.every([])[1:]:
            yield from answers

    def _scores(self, asked: _Texts) -> Iterable[tuple[int, tuple[float, bool]]]:
        return scores(
            self.model, self.tokenizer, asked, batch_size=self.batch_size, autocast=self.autocast, run=self.run
        )

    def _texts(
        self, questions: Mapping[int, list[int]], settings: Settings, stop_ids: frozenset[int]
    ) -> Iterator[tuple[int, str]]:
        writer = Writer(
            self.model,
            self.tokenizer,
            stop_ids,
            batch_size=self.batch_size,
            autocast=self.autocast,
            run=self.run,
        )
        return writer.texts(questions, settings)


def _hands(texts: Mapping[int, Sequence[int]], n: int) -> list[list[int]]:
    """Returns which texts each of `n` processes gets: neighbours, as they begin alike, with about as many tokens."""
    total, done = sum(map(len, texts.values())), 0
    hands: list[list[int]] = [[] for _ in range(n)]
    for i in sorted(texts, key=lambda i: tuple(texts[i])):
        hands[min(n - 1, done * n // max(1, total))].append(i)
        done += len(texts[i])
    return hands
