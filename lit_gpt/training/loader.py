"""The batch loader of training: the micro-batches of each optimizer step, as large as the memory allows."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lit_gpt.args import TrainArgs
from lit_gpt.data.batches import Batch, Idle, Order, ahead, batch_of, micro_batches, steps
from lit_gpt.data.packing import LOOKED_AT, Packing, fullest, prefixes_of
from lit_gpt.data.store import Samples
from lit_gpt.model import GPT
from lit_gpt.parallel.shards import is_sharded
from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.training.batching import micro_batch_tokens, packing_of
from lit_gpt.training.graphs import recorded_hidden
from lit_gpt.training.length import length_of
from lit_gpt.training.memory import blocks_to_recompute

_STEPS = 4
"""Number of optimizer steps whose samples show whether prefixes are shared."""


class BatchLoader:
    """Makes the micro-batches of each optimizer step, and chooses how the model computes them.

    It decides how many tokens a micro-batch has, how many blocks recompute their forward pass, and whether the step is
    replayed from CUDA graphs; after running out of memory it decides again.

    Args:
        seed: decides the order of the samples.
        autocast: makes the context of a forward pass.
        team: the processes among which the samples of each step are dealt.
    """

    def __init__(
        self,
        model: GPT,
        data: Samples,
        train: TrainArgs,
        device: torch.device,
        seed: int,
        autocast: Callable[[], AbstractContextManager],
        team: Team = ALONE,
    ) -> None:
        model.neftune_alpha, self.team, self.sharded = train.neftune_alpha, team, is_sharded(model)
        self.model, self.data, self.train, self.device, self.autocast = model, data, train, device, autocast
        self.seed = seed
        self.begin_at()
        self.packing = Packing(micro_batch_tokens(train, device.type, model.transformer.wte.weight.dtype, self.sharded))
        self.coming: Iterator[list[Batch]] | None = None
        self.next_step = 1
        self.has_shrunk = False
        """Whether the memory ran out, so that micro-batches have fewer tokens than the arguments say."""
        self.hidden_of: Callable[..., Tensor] = model.hidden

    def begin_at(self, step: int = 0, seen: int = 0) -> None:
        """Continues after the first `seen` samples, which `step` optimizer steps had."""
        self.length = length_of(self.train, len(self.data), step, seen)
        self.order = Order(len(self.data), self.length.n_samples, self.seed)

    def prepare(self, max_tokens: int | None = None, n_recomputed: int | None = None) -> None:
        """Decides which blocks are recomputed, and records the step as CUDA graphs where that is possible.

        Args:
            max_tokens: tokens of a forward pass; None is what the arguments say.
            n_recomputed: blocks under activation checkpointing; None is what the arguments say.
        """
        self.has_shrunk = max_tokens is not None
        with self.autocast():
            packing = packing_of(self.model, self.train, self.device, max_tokens)
        self.data = self.data.sharing(packing.share_up_to)
        self.packing = packing if self.shares(packing) else replace(packing, share_up_to=0)
        self.coming = None
        self.model.draws.begin(self.seed, 0, self.device)  # a recording reads the seeds where they are
        with self.autocast():
            if n_recomputed is None:
                n_recomputed = blocks_to_recompute(self.model, self.train, self.most_tokens, self.device)
                n_recomputed = self.team.most(n_recomputed)
            self.model.n_recomputed = n_recomputed
            enabled = self.train.records and not self.sharded
            self.hidden_of = recorded_hidden(self.model, self.packing, self.computed, enabled)

    def shares(self, packing: Packing) -> bool:
        """Returns whether samples of the first steps share prefixes, so that room for them in a recording pays."""
        if self.data.shares_within:
            return packing.share_up_to > 0
        size = self.train.batch_size  # of the whole run's first steps, whichever of them this process takes
        some = (self.order.rows(start, start + min(size, LOOKED_AT)) for start in range(0, _STEPS * size, size))
        return any(prefixes_of(self.data, rows, packing) for rows in some if rows)

    @property
    def max_tokens(self) -> int:
        """Tokens that a forward pass has room for."""
        return self.packing.max_tokens

    @property
    def computed(self) -> np.ndarray:
        """Tokens that a forward pass over each sample alone computes, (n,)."""
        return self.data.computed

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest forward pass: a sample that is longer than max_tokens has one of its own."""
        return max(self.max_tokens, int(self.computed.max()))

    @property
    def n_steps(self) -> int:
        """Optimizer steps of the whole run, unless something ends it sooner."""
        return self.length.n_steps

    def rows(self, step: int) -> list[int]:
        """Returns which samples of the training set a coming step has, up to `n_steps`."""
        return self.order.rows(self.length.seen_after(step - 1), self.length.seen_after(step))

    def batches(self, step: int) -> list[Batch]:
        """Returns the micro-batches of a step on the device, whose dropout is drawn from now on.

        Those of the next step are made in the background.
        """
        if self.coming is None or self.next_step != step:
            seen = self.length.seen_after(step - 1)
            mine = (self.team.rank, self.team.size)
            made = steps(self.data, self.order, self.train.batch_size, packing=self.packing, seen=seen, mine=mine)
            self.coming = ahead(made, self.device)
        self.next_step = step + 1
        self.model.draws.begin(self.seed, step, self.device)
        batches = next(self.coming)
        if self.sharded:  # all devices take part in each pass
            n = self.team.most(len(batches))
            batches = batches + [Idle.make().to(self.device) for _ in range(n - len(batches))]
        return batches

    def n_terms(self, batches: list[Batch]) -> int:
        """Returns the terms of a step's loss, of which these are the micro-batches of this process."""
        return int(self.team.total(sum(batch.n_terms for batch in batches))[0])

    def tokens_a_step(self) -> float:
        """Returns the mean number of tokens that a step computes, if prefixes save as much as in the first steps.

        With several processes, it is what each of them computes.
        """
        size, at_once = self.train.batch_size, min(self.train.batch_size, LOOKED_AT)
        rows = self.order.rows(0, _STEPS * at_once)
        parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
        first = [batch for part in parts for batch in micro_batches(self.data, part, self.packing)]
        share = sum(batch.n_computed for batch in first) / sum(batch.n_tokens for batch in first)
        return share * min(size, self.order.n_samples) * float(self.data.lengths.mean()) / self.team.size

    def largest(self) -> list[int]:
        """Returns the samples of the largest possible micro-batch: the longest, and as many more as fit."""
        return fullest(self.computed, self.max_tokens, self.train.batch_size)

    def largest_batch(self) -> Batch:
        """Returns the largest possible micro-batch."""
        return batch_of(self.data, self.largest())

    def shrink(self) -> bool:
        """Halves the tokens of a micro-batch, or else recomputes all blocks; returns False if both were tried."""
        longest = int(self.computed.max())
        self.hidden_of = self.model.hidden
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.max_tokens > longest:
            smaller, recomputed = max(longest, self.max_tokens // 2), self.model.n_recomputed
        elif self.model.n_recomputed < self.model.config.n_layer:
            smaller, recomputed = self.max_tokens, self.model.config.n_layer
        else:
            return False
        print(
            f"Out of memory: going on with micro-batches of {max(smaller, longest):,} tokens"
            f"{' and all blocks recomputed' if recomputed == self.model.config.n_layer else ''}; "
            "the steps and their losses stay the same"
        )
        self.prepare(smaller, recomputed)
        return True
