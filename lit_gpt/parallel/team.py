"""The processes that train one model together, and how they decide what all of them must do alike."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lit_gpt.args.cluster import PATIENCE

_T = TypeVar("_T")
_BUCKET = 2**24
"""Values of gradients that are added up at once: 64 MB in fp32."""


class Team:
    """The processes of a run, one for each device; the first one, the leader, writes and speaks for all.

    Every method is called by all of them, in the same order. What hosts tell each other goes over gloo, whatever the
    devices use, and never waits for a device. A team of one does nothing and returns what it was given.

    Args:
        rank: number of this process; 0 is the leader.
        size: number of processes.
        group: their gloo group; None is a team of one.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self.group = rank, size, group

    @classmethod
    def of_world(cls) -> "Team":
        """Returns the team of all processes that torch.distributed connects; of one, if it connects none."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=PATIENCE))

    @property
    def leads(self) -> bool:
        """Whether this process is the leader."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def lead(self, value: _T, rank: int = 0) -> _T:
        """Returns the leader's value, or that of another rank, in all processes."""
        if self.is_alone:
            return value
        box = [value if self.rank == rank else None]
        dist.broadcast_object_list(box, src=rank, group=self.group)
        return box[0]  # pyright: ignore[reportReturnType] it is that rank's

    def rows(self, n: int) -> slice:
        """Returns which of a tensor's `n` rows this process keeps where each keeps a part, as `fully_shard` does."""
        size = -(-n // self.size)
        start = min(self.rank * size, n)
        return slice(start, min(start + size, n))

    def first(self, do: Callable[[], _T]) -> _T:
        """Returns the result of `do`, which the leader alone calls, in all processes.

        Raises:
            Exception: what it raised at the leader, in all processes.
        """
        if self.is_alone:
            return do()
        result, error = None, None
        if self.leads:
            try:
                result = do()
            except Exception as e:  # to be raised by all
                error = e
        told = None if error is None else error.with_traceback(None)
        result, told = self.lead((result, told))
        if told is not None:
            raise (error or told)
        return result  # pyright: ignore[reportReturnType]

    def every(self, value: _T) -> list[_T]:
        """Returns the values of all processes, in the order of their ranks."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def total(self, *values: float) -> list[float]:
        """Returns the sum of each value over all processes, exact for whole numbers below 2^53."""
        if self.is_alone:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self.group)
        return sums.tolist()

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if not self.is_alone:
            dist.all_reduce(torch.zeros(1), group=self.group)  # of half a barrier's time

    def any(self, value: Any) -> bool:
        """Returns whether the value of at least one process is true."""
        return self.total(bool(value))[0] > 0

    def most(self, value: int) -> int:
        """Returns the largest value of all processes."""
        if self.is_alone:
            return value
        largest = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return int(largest)

    @torch.no_grad()
    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Sums each tensor over all processes, in place, by the devices' own network."""
        if self.is_alone:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([x.flatten() for x in bucket])
            dist.all_reduce(flat)
            parts = flat.split([x.numel() for x in bucket])
            torch._foreach_copy_(bucket, [part.view_as(x) for part, x in zip(parts, bucket, strict=True)])


ALONE = Team()
"""A process that works without others."""


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Yields the tensors in lists of one dtype and of about _BUCKET values each."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for x in tensors:
        bucket = by_dtype.setdefault(x.dtype, [])
        bucket.append(x)
        if sum(other.numel() for other in bucket) >= _BUCKET:
            yield by_dtype.pop(x.dtype)
    yield from by_dtype.values()
