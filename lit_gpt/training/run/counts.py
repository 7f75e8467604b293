"""What some micro-batches had, in one process or in all of a run."""

import torch
from torch import Tensor

from lit_gpt.data.batches import Batch
from lit_gpt.parallel.team import Team


class Counts:
    """What some micro-batches had."""

    def __init__(self) -> None:
        self.n_samples = self.n_tokens = self.n_targets = self.n_terms = self.n_iterations = 0
        self.losses: list[Tensor] = []
        """Loss of each, and figures after it, summed over its terms."""

    def add(self, batch: Batch, loss: Tensor) -> None:
        """Adds one."""
        self.n_samples += batch.n_samples
        self.n_tokens += batch.n_tokens
        self.n_targets += batch.n_targets
        self.n_terms += batch.n_terms
        self.n_iterations += batch.n_samples > 0
        self.losses.append(loss)

    def of(self, team: Team, n_figures: int = 0) -> "Counts":
        """Returns the sums over all processes.

        Args:
            n_figures: figures that follow each loss.
        """
        found, names = Counts(), ("n_samples", "n_tokens", "n_targets", "n_terms", "n_iterations")
        mine = torch.stack(self.losses).sum(0).view(-1).tolist() if self.losses else [0.0] * (1 + n_figures)
        sums = team.total(*(getattr(self, name) for name in names), *mine)
        for name, n in zip(names, sums, strict=False):
            setattr(found, name, int(n))
        losses = torch.tensor(sums[len(names) :])
        found.losses = [losses if n_figures else losses[0]]
        return found
