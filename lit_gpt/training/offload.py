"""Gradients that wait in the host's memory: the device holds those of one parameter at a time."""

from functools import partial

import torch
from torch import Tensor

from lit_gpt.args import TrainArgs
from lit_gpt.errors import UserError
from lit_gpt.lightning import Fabric, FabricOptimizer
from lit_gpt.model import GPT
from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.training.gradients import Gradients

SCALED = "16-mixed"
"""The precision whose gradients are multiplied by a scale, which is found on the device."""


class OffloadedGradients(Gradients):
    """Each gradient leaves the device as soon as the backward pass has it, and comes back for the optimizer's step.

    Sums over micro-batches, norms, clipping and steps are what they are otherwise, to the last bit.
    """

    def __init__(self, fabric: Fabric, model: GPT, optimizer: FabricOptimizer, max_norm: float) -> None:
        super().__init__(fabric, model, optimizer, max_norm)
        pinned = self.parameters[0].is_cuda  # so that a copy waits for nobody
        self.waiting = [torch.empty_like(p, device="cpu", pin_memory=pinned) for p in self.parameters]
        self.found: dict[int, Tensor] = {}
        """Norm of the gradient that is waiting, by the parameter's index."""
        for i, p in enumerate(self.parameters):
            p.register_post_accumulate_grad_hook(partial(self.take, i))

    def take(self, i: int, parameter: Tensor) -> None:
        """Adds the new gradient of parameter `i` to its sum on the host, and frees it on the device."""
        g: Tensor = parameter.grad  # pyright: ignore[reportAssignmentType] it has one when it gets here
        parameter.grad = None
        if i in self.found:
            g = g.add_(self.waiting[i].to(g.device, non_blocking=True))
        (self.found[i],) = torch._foreach_norm([g])
        self.waiting[i].copy_(g, non_blocking=True)

    def norms(self) -> tuple[tuple[str, ...], Tensor]:
        there = sorted(self.found)
        return tuple(self.names[i] for i in there), torch.stack([self.found[i].float() for i in there])

    def update(self, factor: Tensor | None) -> None:
        for i in sorted(self.found):
            p = self.parameters[i]
            p.grad = self.waiting[i].to(p.device, non_blocking=True)
            super().update(factor)
            p.grad = None

    def allocate(self) -> None:
        for p in self.parameters:
            p.grad = torch.zeros_like(p)
            super().allocate()
            p.grad = None

    def zero(self) -> None:
        self.found.clear()
        self.optimizer.zero_grad(set_to_none=True)


def make_gradients(
    fabric: Fabric, model: GPT, optimizer: FabricOptimizer, train: TrainArgs, team: Team = ALONE
) -> Gradients:
    """Returns the gradients of a run: on the device, or with `offload_gradients` in the host's memory."""
    if train.offload_gradients:
        return OffloadedGradients(fabric, model, optimizer, train.max_norm)
    return Gradients(fabric, model, optimizer, max_norm=train.max_norm, team=team)


def require_offload(train: TrainArgs, precision: str) -> None:
    """Checks that gradients can be offloaded in this precision.

    Args:
        precision: Fabric's name of it, such as bf16-mixed.

    Raises:
        UserError: they cannot, and `train` asks for it.
    """
    if train.offload_gradients and precision == SCALED:
        raise UserError(
            "--offload_gradients true does not go with --precision 16-mixed, whose gradients are scaled on the device; "
            "take bf16-mixed, bf16-true or 16-true"
        )
