"""Tensors that are divided among processes, each of them put together when the leader writes it, and not before."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lit_gpt.files import Later, Spec
from lit_gpt.model import GPT
from lit_gpt.parallel.shards import divided, n_rows_here
from lit_gpt.parallel.team import Team

_T = TypeVar("_T")


class Parts:
    """The parts that this process has of divided tensors; all processes add theirs in the same order."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.parts: list[tuple[Tensor, int]] = []

    def later(self, part: Tensor, n_rows: int) -> Later:
        """Returns a tensor of which each process has a part; the leader can get it within `first`.

        Args:
            n_rows: rows of the whole.
        """
        number = len(self.parts)
        self.parts.append((part.detach(), n_rows))
        return Later(Spec((n_rows, *part.shape[1:]), part.dtype), partial(self._asked_for, number))

    def first(self, do: Callable[[], _T]) -> _T:
        """Returns the result of `do`, which the leader alone calls, in all; the others send it what it asks for.

        Raises:
            Exception: what it raised at the leader, in all processes.
        """

        def asking() -> _T:
            try:
                return do()
            finally:
                self.team.lead(None)  # that is all

        if not self.team.leads:
            while (number := self.team.lead(None)) is not None:
                self._whole(number)
        return self.team.first(asking)

    def _asked_for(self, number: int) -> Tensor:
        whole = self._whole(self.team.lead(number))
        assert whole is not None
        return whole

    def _whole(self, number: int) -> Tensor | None:
        """Returns one of the tensors on the leader's host; None on the others."""
        part, n_rows = self.parts[number]
        size = -(-n_rows // self.team.size)
        mine = part.cpu().contiguous()
        if len(mine) < size:  # all send as many rows
            mine = torch.cat([mine, mine.new_zeros(size - len(mine), *mine.shape[1:])])
        if not self.team.leads:
            dist.gather(mine.view(torch.uint8), dst=0, group=self.team.group)
            return None
        whole = mine.new_empty(size * self.team.size, *mine.shape[1:])
        pieces = [piece.view(torch.uint8) for piece in whole.split(size)]
        dist.gather(mine.view(torch.uint8), pieces, dst=0, group=self.team.group)
        return whole[:n_rows]


def weights_later(model: GPT, weights: Mapping[str, Tensor], parts: Parts) -> dict[str, Tensor | Later]:
    """Returns tensors of the model by name, the divided ones as `Later`; one with two names is the same under both.

    Args:
        weights: the tensors; all are divided, after `reshard`, that are to be.
    """
    owners: dict[int, str] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(p), name)
    first_name = {name: owners[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    found: dict[str, Tensor | Later] = {}
    for name, x in weights.items():
        if not hasattr(x, "to_local"):
            found[name] = x
        elif first_name[name] in found:
            found[name] = found[first_name[name]]
        else:
            found[name] = parts.later(x.to_local(), len(x))  # pyright: ignore[reportAttributeAccessIssue] a DTensor's
    return found


def state_later(model: GPT, optimizer: torch.optim.Optimizer, parts: Parts) -> dict[str, Any]:
    """Returns the state of an optimizer of `trained_here`, with divided tensors as `Later`."""
    state, of_part = optimizer.state_dict(), divided(model, optimizer)
    found: dict[int, dict[str, Any]] = {}
    for place in sorted(state["state"]):
        found[place] = dict(state["state"][place])
        for name in sorted(found[place]):
            x, p = found[place][name], of_part.get(place)
            if p is not None and isinstance(x, Tensor) and x.dim() and len(x) == n_rows_here(p):
                found[place][name] = parts.later(x, len(p))
    return {"state": found, "param_groups": state["param_groups"]}
