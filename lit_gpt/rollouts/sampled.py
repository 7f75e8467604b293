"""Samples several answers to each prompt with the engine, and grades them."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from lit_gpt.args.rollouts import SampleArgs
from lit_gpt.data.prepare.rows import Row
from lit_gpt.errors import UserError
from lit_gpt.generation.conversation import asked
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import Request, Sampling
from lit_gpt.grading.checkers import Checker
from lit_gpt.prompts import ChatTemplate, Style

_AT_ONCE = 64
"""Prompts whose answers are written before the next ones are begun, so that a run shows how far it is."""


@dataclass(frozen=True)
class Graded:
    """The answers to a prompt, with their scores."""

    row: Row
    texts: tuple[str, ...]
    scores: tuple[float, ...]
    n_tokens: tuple[int, ...]

    @property
    def solved(self) -> float:
        """Share of right answers: the difficulty of a prompt, 1 is easy."""
        return sum(score >= 1 for score in self.scores) / len(self.scores)


def sampled(
    engine: Engine,
    style: Style | ChatTemplate,
    rows: Sequence[Row],
    args: SampleArgs,
    *,
    checker: Checker,
    end_ids: Collection[int] = (),
) -> Iterator[list[Graded]]:
    """Yields the graded answers of some rows at a time.

    An answer that its length ended, and not the model, is wrong.

    Raises:
        UserError: the engine refuses a prompt, which is too long for the model.
    """
    for start in range(0, len(rows), _AT_ONCE):
        part, requests = rows[start : start + _AT_ONCE], []
        for n, row in enumerate(part, start):
            prompt = asked(style, engine.tokenizer, prompt_turns(row), row.tools, end_ids=end_ids)
            for j in range(args.k):
                seed = args.seed + n * args.k + j
                sampling = Sampling(temperature=args.temperature, top_p=args.top_p, seed=seed)
                requests.append(Request(prompt.ids, args.max_new_tokens, sampling, stop_ids=prompt.stop_ids))
        answers = engine.complete(requests)
        found = []
        for i, row in enumerate(part):
            mine = answers[i * args.k : (i + 1) * args.k]
            if failed := next((a.error for a in mine if a.error), None):
                raise UserError(f"{row.where}: {failed}")
            scores = [checker(row.instruction, a.text, row.response) if a.finish == "stop" else 0.0 for a in mine]
            found.append(Graded(row, tuple(a.text for a in mine), tuple(scores), tuple(len(a.tokens) for a in mine)))
        yield found


def prompt_turns(row: Row) -> list:
    """Returns the turns of a row before its last answer."""
    turns = list(row.turns)
    while turns and turns[-1].role == "assistant":
        turns.pop()
    return turns
