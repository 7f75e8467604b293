"""Layers that are not attention, for tokens of many rows: what they keep of each token lies in the rows' extents.

Letters: N tokens of all rows, P positions of the pool, F features that are kept.
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from lit_gpt.layers.past import Mixing, Rule, Tensors, stacked, state_after

_MOST_STATES = 64
"""Rows whose states are kept; that of another one is computed again from its features."""


class ExtentMixing(nn.Module):
    """A layer for tokens of many rows, which takes over the modules of `layer`.

    Args:
        pool: the layer's features, (P, 1, F).
    """

    def __init__(self, layer: Mixing, pool: Tensor) -> None:
        super().__init__()
        self.layer, self.pool = layer, pool[:, 0]
        self.states: OrderedDict[int, tuple[int, Tensor]] = OrderedDict()
        """Ticket of a row -> the position where it ended, and its state there."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: None, batch: Any, *unused: Any) -> Tensor:
        """Returns the output of the layer, (1, N, C), for x (1, N, C)."""
        kept, gate = self.layer.features(x)
        self.pool.index_copy_(0, batch.places, kept[0].to(self.pool.dtype))
        return self.layer.mixed(kept, gate, _Extents(self.pool, self.states, batch))


class _Extents:
    """What came before the tokens of a batch, see `lit_gpt.layers.past.Past`; x is (1, N, F) there."""

    def __init__(self, pool: Tensor, states: OrderedDict[int, tuple[int, Tensor]], batch: Any) -> None:
        self.pool, self.states, self.batch = pool, states, batch

    def taps(self, x: Tensor, n: int) -> list[Tensor]:
        b, found = self.batch, [x]
        for j in range(1, n):
            before = self.pool[(b.places - j).clamp(min=0), : x.size(-1)]
            is_none = (b.positions < j).unsqueeze(-1)  # not this row's, perhaps never written
            found.append(before.masked_fill(is_none, 0).to(x.dtype)[None])
        return found

    def whole(self, x: Tensor) -> None:
        return None

    def run(self, rule: Rule, tensors: Tensors, x: Tensor) -> Tensor:
        made = [t[0] for t in tensors(x, self)]
        initial: list[Tensor | None] = []
        for piece in self.batch.pieces:
            end, state = self.states.pop(piece.owner, (-1, None))
            if piece.position and end != piece.position:
                before = self.pool[piece.start : piece.start + piece.position].to(x.dtype)
                state = state_after(rule, tensors, before)
            initial.append(state if piece.position else None)
        y, states = rule(made, self.batch.lengths, stacked(initial))
        for piece, state in zip(self.batch.pieces, states, strict=True):
            self.states[piece.owner] = piece.position + len(piece.ids), state
        while len(self.states) > max(_MOST_STATES, len(self.batch.pieces)):
            self.states.popitem(last=False)
        return y[None]
