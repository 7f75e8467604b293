"""Says what a process reads of a base's weights, where several load a model of which each keeps a part."""

from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor, nn

from lit_gpt.parallel.team import ALONE, Team

_T = TypeVar("_T")


@dataclass
class Shares:
    """The share of one process: the rows of each weight that it keeps, and of the quantized layers some as a whole.

    A quantized layer is made by one process, which reads all of it, and sent to the others: the weights that share a
    scale need not end where a process's part does. Every method is called by all processes, in the same order.

    Args:
        team: the processes; one reads everything.
        all_rows: each reads all rows of what is not quantized, for a method that computes with them before they are
            divided.
    """

    team: Team = ALONE
    all_rows: bool = False
    _makers: dict[str, int] = field(default_factory=dict, init=False)

    @property
    def part(self) -> tuple[int, int]:
        """The number of this process, and how many there are."""
        return self.team.rank, self.team.size

    def rows(self, x: Tensor) -> slice:
        """Returns which rows of a weight this process reads."""
        return slice(None) if self.all_rows else self.team.rows(len(x))

    def makes(self, path: str) -> bool:
        """Returns whether it is this process that makes a quantized layer: they take turns."""
        self._makers[path] = len(self._makers) % self.team.size
        return self._makers[path] == self.team.rank

    def sent(self, path: str, layer: nn.Module) -> nn.Module:
        """Returns the quantized layer that one process has made; with several, on the host."""
        maker = self._makers[path]
        if self.team.is_alone:
            return layer
        return self.team.lead(layer.cpu() if maker == self.team.rank else layer, maker)

    def every(self, value: _T) -> list[_T]:
        """Returns what each process has, in their order."""
        return self.team.every(value)
