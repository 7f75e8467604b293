"""The batch loader of GRPO: the micro-batches of a step are answers that the model has just drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_gpt.data.batches import micro_batches
from lit_gpt.data.packing import Packing
from lit_gpt.data.store import IGNORE
from lit_gpt.rollouts.drawing import Drawing, prompt_of, require_switch, seeds_of, switched_off
from lit_gpt.rollouts.rollout import Rollout, RolloutBatch, batches_of, interleaved, load_rollout, rollout_of
from lit_gpt.training.batching import packing_of
from lit_gpt.training.loader import BatchLoader
from lit_gpt.training.log_probs import target_log_probs
from lit_gpt.training.randomness import undisturbed


class RolloutLoader(BatchLoader):
    """Makes the micro-batches of each optimizer step of answers to its prompts.

    Answers follow from the weights, the seed and the step, so that a resumed run draws the same. Those of several steps
    (`steps_per_rollout`) follow from the weights before the first of these, and are kept in `folder` for a resumed run.
    Several devices each draw the answers to some of the prompts, and all of them learn the answers of all.

    Args:
        drawing: draws and grades.
        folder: where rollouts of several steps are kept.

    Raises:
        UserError: the updates cannot be switched off where they have to be.
    """

    def __init__(self, *args: Any, drawing: Drawing, folder: Path, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drawing, self.folder = drawing, folder
        self.latest: tuple[int, Rollout] | None = None
        """The first step of the rollout that is at hand, and it."""
        require_switch(self.model, drawing.args)

    def shares(self, packing: Packing) -> bool:
        """Returns whether the answers of a group share their prompt."""
        return packing.share_up_to > 0

    @property
    def computed(self) -> np.ndarray:
        """Tokens of each prompt with the answer that the data have to it, (n,): those to come are taken to be alike."""
        return self.data.lengths

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest forward pass."""
        return max(self.max_tokens, int(self.data.lengths.max()) + self.drawing.args.max_new_tokens)

    def tokens_a_step(self) -> float:
        """Returns roughly the tokens that a step computes."""
        args = self.drawing.args
        row = float(self.data.lengths.mean()) + args.group_size * args.max_new_tokens / 2
        return self.train.batch_size * row / self.team.size

    def largest_batch(self) -> RolloutBatch:
        """Returns the largest possible micro-batch, of answers as long as they may be."""
        args, longest = self.drawing.args, int(self.data.lengths.argmax())
        answers = [[[0] * args.max_new_tokens] * args.group_size]
        rewards = np.arange(args.group_size, dtype=np.float32)
        rollout = rollout_of([prompt_of(self.data, longest)], answers, rewards)
        return max(self._batches(rollout, range(1), (0, 1)), key=lambda batch: batch.n_computed)

    def batches(self, step: int) -> list[RolloutBatch]:
        """Returns the micro-batches of a step on the device, after drawing its answers if they are not at hand."""
        n = self.drawing.args.steps_per_rollout
        first = (step - 1) // n * n + 1
        if self.latest is None or self.latest[0] != first:
            self.latest = first, self._rollout(first, step)
        before = sum(len(self.rows(s)) for s in range(first, step))
        mine = (self.team.rank, self.team.size)
        found = self._batches(self.latest[1], range(before, before + len(self.rows(step))), mine)
        if n == 1:
            self.latest = None
        self.model.draws.begin(self.seed, step, self.device)
        return [batch.to(self.device) for batch in found]

    def _batches(self, rollout: Rollout, rows: range, mine: tuple[int, int]) -> list[RolloutBatch]:
        args = self.drawing.args
        kinds = {"normalization": args.normalization, "keeps_all": args.kl_weight > 0}
        return batches_of(rollout, rows, self.packing, **kinds, mine=mine)

    def _rollout(self, first: int, step: int) -> Rollout:
        """Returns the answers of the steps from `first` on; after a resume within them, those that were kept."""
        args, path = self.drawing.args, self.folder / f"step-{first:06d}.npz"
        if step != first:
            return self.team.first(lambda: load_rollout(path))
        last = min(first + args.steps_per_rollout - 1, self.n_steps)
        rows = [i for s in range(first, last + 1) for i in self.rows(s)]
        seeds = seeds_of(self.seed, first, len(rows), args.group_size)
        mine = slice(self.team.rank, None, self.team.size)
        part = self._drawn(rows[mine], seeds[mine], keeps_old=last > first) if rows[mine] else None
        rollout = interleaved([of_rank for of_rank in self.team.every(part) if of_rank is not None])
        if last > first and self.team.leads:
            rollout.save(path)
        return rollout

    def _drawn(self, rows: list[int], seeds: list[int], keeps_old: bool) -> Rollout:
        """Returns answers to the prompts of some rows, with the log-probabilities that the loss asks for.

        Args:
            seeds: seed of each row's group.
            keeps_old: whether the weights will have changed when a step learns from them.
        """
        with undisturbed(self.device):
            answers, rewards = self.drawing.draw(self.model, self.data, rows, seeds)
            rollout = rollout_of([prompt_of(self.data, i) for i in rows], answers, rewards.reshape(-1))
            if keeps_old:
                self._compute(rollout, rollout.old)
            if self.drawing.args.kl_weight:
                with switched_off(self.model):
                    self._compute(rollout, rollout.base)
        return rollout

    @torch.no_grad()
    def _compute(self, rollout: Rollout, into: np.ndarray) -> None:
        """Writes the log-probability of each target of a rollout into an array over its tokens."""
        with self.autocast():
            packing = packing_of(self.model, self.train, self.device, self.max_tokens)
            for batch in micro_batches(rollout.answers, range(len(rollout.answers)), packing):
                found = target_log_probs(self.model, batch.to(self.device)).float().cpu().numpy()
                start = 0
                for a in batch.answers:  # pyright: ignore[reportAttributeAccessIssue] of rows of answers
                    at = int(rollout.answers.inner[a]) + _targets(rollout, a)
                    into[at] = found[start : start + len(at)]
                    start += len(at)


def _targets(rollout: Rollout, a: int) -> np.ndarray:
    """Returns where an answer has targets, counted from its beginning."""
    labels = np.asarray(rollout.answers.answer(a)[1])
    return (labels[1:] != IGNORE).nonzero()[0] + 1
