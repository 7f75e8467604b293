"""Draws answers to the prompts of a prepared data set, from the weights that are being trained, and grades them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.data.store import IGNORE, Samples
from lit_gpt.errors import UserError
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import GREEDY, Request, Sampling
from lit_gpt.grading.checkers import Checker
from lit_gpt.methods.lora.layer import LoRALinear
from lit_gpt.model import GPT
from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.tokenizer import Tokenizer

_AT_ONCE = 256
"""Validation prompts whose answers are drawn before somebody may stop the run."""


class Drawing:
    """What it takes to draw and grade answers.

    Args:
        end_ids: tokens that end an answer.
        autocast: context of every forward pass.
        team: the processes among which the prompts are dealt; each has the whole model.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        checker: Checker,
        args: GrpoArgs,
        end_ids: Sequence[int],
        autocast: Callable[[], AbstractContextManager[Any]],
        team: Team = ALONE,
    ) -> None:
        self.tokenizer, self.checker, self.args = tokenizer, checker, args
        self.end_ids, self.autocast, self.team = frozenset(end_ids), autocast, team

    def draw(
        self, model: GPT, data: Samples, rows: Sequence[int], seeds: Sequence[int] | None
    ) -> tuple[list[list[list[int]]], np.ndarray]:
        """Returns the tokens of the answers to each row's prompt, and their rewards, (rows, answers a row).

        Args:
            seeds: seed of each row's group; None draws one answer each, the most probable tokens.

        Raises:
            UserError: a prompt is too long for the model.
        """
        size, prompts = self.args.group_size if seeds is not None else 1, [prompt_of(data, i) for i in rows]
        requests = [
            Request(
                prompt,
                self.args.max_new_tokens,
                GREEDY if seeds is None else Sampling(seed=seeds[n] + j),
                stop_ids=self.end_ids,
            )
            for n, prompt in enumerate(prompts)
            for j in range(size)
        ]
        at_once = min(self.args.rollout_rows, len(requests))
        room = at_once * (max(map(len, prompts)) + self.args.max_new_tokens)
        training = model.training
        with self.autocast():
            engine = Engine(model, self.tokenizer, max_rows=at_once, max_tokens=room, autocast=self.autocast)
        answers = engine.complete(requests)
        model.train(training)
        tokens: list[list[list[int]]] = []
        rewards = np.zeros((len(rows), size), dtype=np.float32)
        for n, i in enumerate(rows):
            asked, expected = self.tokenizer.decode(prompts[n]), self.tokenizer.decode(self._expected(data, i))
            mine = answers[n * size : (n + 1) * size]
            if failed := next((a.error for a in mine if a.error), None):
                raise UserError(f"sample {i} of the data: {failed}")
            tokens.append([[t.id for t in a.tokens] for a in mine])
            rewards[n] = [self.checker(asked, a.text, expected) if a.finish == "stop" else 0.0 for a in mine]
        return tokens, rewards

    def measured(self, model: GPT, data: Samples, n: int, stopped: Callable[[], object]) -> tuple[float, float] | None:
        """Returns mean reward and tokens of the most probable answers to n prompts; None if it was stopped."""
        total, n_tokens = 0.0, 0
        for start in range(0, n, _AT_ONCE):
            mine = range(start, min(n, start + _AT_ONCE))[self.team.rank :: self.team.size]
            if mine:
                found, scores = self.draw(model, data, mine, None)
                total += float(scores.sum(dtype=np.float64))
                n_tokens += sum(len(answer) for group in found for answer in group)
            if stopped():
                return None
        total, n_drawn = self.team.total(total, n_tokens)
        return total / n, n_drawn / n

    def _expected(self, data: Samples, i: int) -> list[int]:
        """Returns the tokens of a row's own answer, without the one that ends it."""
        ids, labels = data[i]
        found = np.asarray(ids)[np.asarray(labels) != IGNORE].tolist()
        return found[:-1] if found and found[-1] in self.end_ids else found


def prompt_of(data: Samples, i: int) -> list[int]:
    """Returns the tokens of a sample before its first target."""
    ids, labels = data[i]
    found = (np.asarray(labels) != IGNORE).nonzero()[0]
    return np.asarray(ids[: found[0] if len(found) else len(ids)]).tolist()


@contextmanager
def switched_off(model: GPT) -> Iterator[None]:
    """Lets the model compute without its LoRA updates within the block."""
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    before = [layer.scaling for layer in layers]
    try:
        for layer in layers:
            layer.scaling = 0.0
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling


def require_switch(model: GPT, args: GrpoArgs) -> None:
    """Checks that the updates of a model can be switched off, where the loss holds it against itself without them.

    Raises:
        UserError: it has no updates, or DoRA's magnitudes.
    """
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    if args.kl_weight and (not layers or any(len(layer.lora_magnitude) for layer in layers)):
        raise UserError("--kl_weight needs updates that can be switched off: --method lora without --lora_dora")


def seeds_of(seed: int, first: int, n: int, size: int) -> list[int]:
    """Returns the seed of each of n groups of a rollout, which begins with the optimizer step `first`."""
    start = int(np.random.SeedSequence((seed, first)).generate_state(1, np.uint64)[0] >> 2)
    return [start + k * size for k in range(n)]
