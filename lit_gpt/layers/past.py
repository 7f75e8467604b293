"""What a layer that is not attention sees of the tokens before: the last few, and a state that sums up all of them.

Such a layer keeps some features of each token, as attention keeps keys and values, at the token's position in the
cache. Rows may therefore be padded, taken back, or begin with what another row has computed. A state that sums up all
tokens so far is kept beside them for the one position where the row ended, and computed again from the features where
a row goes on from another one.

Letters: B rows, T tokens of each, N = B T tokens of all, F features that are kept, S positions of a cache, L taps.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_gpt.layers.attention.documents import Documents

Rule = Callable[[Sequence[Tensor], Sequence[int], Tensor | None], tuple[Tensor, Tensor]]
"""Function of a row's tensors (N, ...), the lengths of the texts in it, and the state (n, ...) that each of them begins
with; returns the output (N, ...) and the states at the ends."""
Tensors = Callable[[Tensor, "Past"], Sequence[Tensor]]
"""Function of features (B, T, F) and what came before them that returns the tensors of a `Rule`, (B, T, ...)."""


class Past(Protocol):
    """What came before the tokens of a call."""

    def taps(self, x: Tensor, n: int) -> list[Tensor]:
        """Returns x (B, T, F) of each token, of the one before it, and so on, n in all; zeros before the first one."""
        ...

    def whole(self, x: Tensor) -> Sequence[int] | None:
        """Returns the lengths of the texts in x (B, T, F), B T in all, if each begins and ends there; None if not."""
        ...

    def run(self, rule: Rule, tensors: Tensors, x: Tensor) -> Tensor:
        """Returns the output (B, T, ...) of a rule that carries a state from token to token."""
        ...


class _Fresh:
    """Rows that begin with the first token of a call."""

    def taps(self, x: Tensor, n: int) -> list[Tensor]:
        T = x.size(1)
        return [F.pad(x, (0, 0, j, 0))[:, :T] for j in range(n)]

    def whole(self, x: Tensor) -> Sequence[int] | None:
        return (x.size(1),) * x.size(0)

    def run(self, rule: Rule, tensors: Tensors, x: Tensor) -> Tensor:
        B, T = x.shape[:2]
        return rule([t.flatten(0, 1) for t in tensors(x, self)], (T,) * B, None)[0].unflatten(0, (B, T))


class _Packed:
    """Documents that lie end to end in a single row, of which some begin with prefixes that lie before them."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents

    def taps(self, x: Tensor, n: int) -> list[Tensor]:
        padded = F.pad(x[0], (0, 0, 0, 1))  # the last row is zeros
        d = self.documents
        index = _before(d.lengths, d.n_sharing, n, x.device)
        return [x, *(padded.index_select(0, index[j])[None] for j in range(1, n))]

    def whole(self, x: Tensor) -> Sequence[int] | None:
        return None if self.documents.n_sharing else self.documents.lengths

    def run(self, rule: Rule, tensors: Tensors, x: Tensor) -> Tensor:
        made, d = [t[0] for t in tensors(x, self)], self.documents
        n = len(d.n_sharing)
        if not n:
            return rule(made, d.lengths, None)[0][None]
        end = sum(d.lengths[:n])
        first, states = rule([t[:end] for t in made], d.lengths[:n], None)
        shared = states.repeat_interleave(torch.tensor(d.n_sharing, device=x.device), 0)
        alone = states.new_zeros(len(d.lengths) - n - len(shared), *states.shape[1:])
        rest, _ = rule([t[end:] for t in made], d.lengths[n:], torch.cat((shared, alone)))
        return torch.cat((first, rest))[None]


class _Cached:
    """Rows whose features at earlier positions are in a cache.

    Args:
        features: those of all positions of the cache, (B, S, F), the new ones included.
        positions: of the tokens of the call, (T,) or (B, T).
        states: what `run` keeps for the next call: the position where each row ended, and its state there.
    """

    def __init__(self, features: Tensor, positions: Tensor, states: dict[str, Any]) -> None:
        self.features, self.states = features, states
        self.positions = positions.expand(features.size(0), -1)  # (B, T)

    def taps(self, x: Tensor, n: int) -> list[Tensor]:
        return [x, *(self._at(self.positions - j)[..., : x.size(-1)] for j in range(1, n))]

    def whole(self, x: Tensor) -> Sequence[int] | None:
        return None

    def _at(self, positions: Tensor) -> Tensor:
        """Returns the features at positions (B, T), zeros before the first one."""
        index = positions.clamp(min=0).unsqueeze(-1).expand(-1, -1, self.features.size(-1))
        return self.features.gather(1, index) * (positions >= 0).unsqueeze(-1)

    def run(self, rule: Rule, tensors: Tensors, x: Tensor) -> Tensor:
        B, T = x.shape[:2]
        made = [t.flatten(0, 1) for t in tensors(x, self)]
        starts = self.positions[:, 0].tolist()
        ended = self.states.get("ended") or [(-1, None)] * B
        initial = []
        for row, (start, (end, state)) in enumerate(zip(starts, ended, strict=True)):
            if start and end != start:
                state = state_after(rule, tensors, self.features[row, :start])
            initial.append(state if start else None)
        y, states = rule(made, (T,) * B, stacked(initial))
        self.states["ended"] = [(start + T, state) for start, state in zip(starts, states, strict=True)]
        return y.unflatten(0, (B, T))


def state_after(rule: Rule, tensors: Tensors, features: Tensor) -> Tensor:
    """Returns the state after tokens with these features, (T, F), from the first one on."""
    x = features[None]
    return rule([t.flatten(0, 1) for t in tensors(x, _Fresh())], (x.size(1),), None)[1][0]


def recomputed(rule: Rule) -> Rule:
    """Returns a rule that does the same; what it computes on the way is computed again in the backward pass."""

    def run(tensors: Sequence[Tensor], lengths: Sequence[int], initial: Tensor | None) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return rule(tensors, lengths, initial)
        return checkpoint(rule, tensors, lengths, initial, use_reentrant=False)

    return run


def stacked(states: Sequence[Tensor | None]) -> Tensor | None:
    """Returns the states as one tensor, zeros for those that are None; None if all are."""
    known = next((state for state in states if state is not None), None)
    if known is None:
        return None
    return torch.stack([torch.zeros_like(known) if state is None else state for state in states])


@lru_cache(maxsize=64)
def _before(lengths: tuple[int, ...], n_sharing: tuple[int, ...], n: int, device: torch.device) -> Tensor:
    """Returns the index in a packed row of the token that is j before each one, (n, T); T where there is none."""
    T, rows = sum(lengths), []
    documents = Documents.of(lengths, n_sharing)
    for piece, prefix in documents.pieces():
        at = torch.arange(piece.stop - piece.start)
        for_all = []
        for j in range(n):
            index = torch.where(at >= j, at + piece.start - j, T)
            if prefix is not None:  # which a document goes on from
                before = at - j + prefix.stop
                index = torch.where((at < j) & (before >= prefix.start), before, index)
            for_all.append(index)
        rows.append(torch.stack(for_all))
    return torch.cat(rows, 1).to(device)


class Mixing(nn.Module):
    """A layer that mixes tokens by other means than attention, with the arguments that attention has.

    A subclass has two methods: `features(x)` returns what is kept of each token, (B, T, F), and what the output is
    multiplied by; `mixed(kept, gate, past)` returns the output of the layer, (B, T, C).

    Attributes:
        inputs: names of the linear layers that LoRA adapts where it adapts queries, keys or values.
    """

    inputs: tuple[str, ...] = ()

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def flops(self, length: float) -> float:
        """Returns the operations a token of the layer's state, in the forward pass; 0 for a layer without one.

        Args:
            length: tokens of a text.
        """
        return 0.0

    def mixed(self, kept: Tensor, gate: Tensor, past: Past) -> Tensor:
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: Any = None,
        input_pos: Tensor | None = None,
        documents: Documents | None = None,
        carried: Any = None,
    ) -> Tensor:
        """Returns the output of the layer, (B, T, C).

        Args:
            x: (B, T, C).
            cos, sin, mask, carried: not used.
            cache: a layer of a KV cache.
            input_pos: positions of the tokens, (T,) or (B, T).
            documents: the documents packed in x, (1, T, C).
        """
        kept, gate = self.features(x)
        if documents is not None:
            return self.mixed(kept, gate, _Packed(documents))
        if cache is None:
            return self.mixed(kept, gate, _Fresh())
        positions = torch.arange(x.size(1), device=x.device) if input_pos is None else input_pos
        features, _ = cache.update(kept.unsqueeze(1), kept[:, None, :, :0], positions)
        return self.mixed(kept, gate, _Cached(features[:, 0], positions, cache.states))
