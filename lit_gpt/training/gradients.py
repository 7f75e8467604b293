"""Gradients before the optimizer's step: clipped, and left unused where they are not finite."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from lit_gpt.errors import UserError
from lit_gpt.lightning import Fabric, FabricOptimizer
from lit_gpt.model import GPT
from lit_gpt.parallel.shards import gradients_here, is_sharded, trained_here
from lit_gpt.parallel.team import ALONE, Team

_MAX_SKIPPED = 10
"""Number of steps in a row without a finite gradient after which a run ends."""


@dataclass(frozen=True)
class _Norms:
    """The gradient norms of a step, on their way to the host."""

    step: int
    names: tuple[str, ...]
    """Parameters with a gradient."""
    values: Tensor
    """Their norms, (n,)."""
    arrived: "torch.cuda.Event | None"


class Gradients:
    """The gradients of a model, and the optimizer's step with them, which is skipped where they are not finite.

    The host does not wait to know that: the optimizer's fused kernel reads a flag on the device, and the host learns
    of it one step later.
    """

    def __init__(
        self, fabric: Fabric, model: GPT, optimizer: FabricOptimizer, max_norm: float, team: Team = ALONE
    ) -> None:
        trained = trained_here(model)
        self.model, self.sharded = model, is_sharded(model)
        self.names, self.parameters = list(trained), list(trained.values())
        self.fabric, self.optimizer, self.max_norm, self.team = fabric, optimizer, max_norm, team
        self.due: _Norms | None = None
        self.n_skipped = self.n_in_a_row = self.last_skipped = 0

    def step(self, step: int, say: Callable[[str], None] = print) -> None:
        """Adds up the gradients of all devices, clips them, takes the optimizer's step, and zeroes the gradients."""
        self.gather()
        scaler = getattr(self.fabric._precision, "scaler", None)
        if scaler is not None:
            self.fabric._precision.unscale_gradients(self.optimizer.optimizer)
        names, norms = self.norms()
        total = torch.linalg.vector_norm(norms)
        factor = (self.max_norm / (total + 1e-6)).clamp(max=1.0) if self.max_norm > 0 else None
        self.apply(factor, ~torch.isfinite(total))
        self.zero()
        values = norms.to("cpu", non_blocking=True)
        arrived = torch.cuda.Event() if norms.is_cuda else None
        if arrived is not None:
            arrived.record()
        self.settle(say)
        self.due = _Norms(step, names, values, arrived)

    def gather(self) -> None:
        """Adds up the gradients of all devices; one that had no samples in this step adds none."""
        if self.sharded:
            gradients_here(self.model)  # the backward pass has added them up
            return
        if self.team.is_alone:
            return
        for p in self.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self.team.add_up(p.grad for p in self.parameters if p.grad is not None)

    def norms(self) -> tuple[tuple[str, ...], Tensor]:
        """Returns the names of the parameters with a gradient, and the norm of each, (n,) in fp32."""
        there = [(name, p.grad) for name, p in zip(self.names, self.parameters, strict=True) if p.grad is not None]
        names, gradients = zip(*there, strict=True)
        norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
        if self.sharded:
            squares = norms.square_()
            self.team.add_up([squares])
            norms = squares.sqrt_()
        return names, norms

    def apply(self, factor: Tensor | None, not_finite: Tensor) -> None:
        """Takes the optimizer's step with the gradients times `factor`, unless they are `not_finite`."""
        if self.may_step(not_finite):
            self.update(factor)

    def may_step(self, not_finite: Tensor) -> bool:
        """Returns whether to call the optimizer; the host waits only for one that cannot skip its step by itself."""
        raw = self.optimizer.optimizer
        scaler = getattr(self.fabric._precision, "scaler", None)
        if scaler is None and all(group.get("fused") for group in raw.param_groups):
            # which the fused kernel reads: where it is 1, everything stays as it is
            raw.found_inf = not_finite.float()  # pyright: ignore[reportAttributeAccessIssue]
            return True
        return scaler is not None or not not_finite.item()  # a scaler looks for itself

    def update(self, factor: Tensor | None) -> None:
        """Calls the optimizer with the gradients that are there, times `factor`."""
        if factor is not None:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], factor)
        self.optimizer.step()
        changed = [p for p in self.parameters if p.grad is not None]
        increment_version(changed)  # by which what is made of them is made again; torch's fused kernel leaves it

    def allocate(self) -> None:
        """Makes the optimizer allocate its state, if it can do so without a step."""
        raw = self.optimizer.optimizer
        if all(group.get("fused") for group in raw.param_groups):
            found_inf = torch.ones((), device=self.parameters[0].device)
            raw.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue] as above
            self.optimizer.step()

    def zero(self) -> None:
        """Zeroes the gradients in place: a recorded CUDA graph adds to these very tensors."""
        if self.sharded:
            gradients_here(self.model)
        self.optimizer.zero_grad(set_to_none=False)

    def settle(self, say: Callable[[str], None] = print) -> None:
        """Waits for the norms of the last step and says which parameter's gradient was not finite, if one was."""
        due, self.due = self.due, None
        if due is None:
            return
        if due.arrived is not None:
            due.arrived.synchronize()
        bad = [name for name, norm in zip(due.names, due.values.tolist(), strict=True) if not abs(norm) < float("inf")]
        if not bad:
            self.n_in_a_row = 0
            return
        self.n_skipped += 1
        self.n_in_a_row += 1
        self.last_skipped = due.step
        others = f" and {len(bad) - 1} others" if len(bad) > 1 else ""
        say(f"step {due.step} is skipped: the gradient of {bad[0]}{others} is not finite")

    def require_finite(self, rows: Callable[[int], list[int]]) -> None:
        """Checks that not too many steps in a row were skipped.

        Args:
            rows: returns which samples of the training set a step has.

        Raises:
            UserError: as many as _MAX_SKIPPED were.
        """
        if self.n_in_a_row < _MAX_SKIPPED:
            return
        raise UserError(
            f"the gradients of {_MAX_SKIPPED} steps in a row are not finite; lower --learning_rate, or look at the "
            f"samples of step {self.last_skipped}: numbers {', '.join(map(str, rows(self.last_skipped)))} of the "
            "training set, counted from 0"
        )
