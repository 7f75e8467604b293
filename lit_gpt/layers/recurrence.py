"""Linear recurrences over tokens, in chunks: a state that decays and takes up a key and a value with each token.

The state S (dk, dv) of a head reads a token with key k, value v and decay a: S becomes a S + k v^T, and the output is
S^T q. Within a chunk of L tokens all outputs come from matmuls, and the state goes from chunk to chunk
(arXiv:2405.21060, section 6).

Letters: N tokens of all texts, n texts, V heads, dk and dv their channels, M chunks of L tokens.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

_CHUNK = 64


def flops_of_state(length: float, dk: int, dv: int, *, corrects: bool) -> float:
    """Returns the operations of a head a token, forward: matmuls within a chunk, and with the state that goes through.

    Args:
        length: tokens of a text.
        dk, dv: channels of a key and of a value.
        corrects: whether values are corrected by what the state has of their key, which takes a triangular system.
    """
    L = min(_CHUNK, length)
    return 2 * L * (dk + dv) + 4 * dk * dv + corrects * (2 * L * dk + L * (dk + dv) + 2 * dk * dv)


class Chunks:
    """How texts that lie end to end are cut into chunks of L tokens, of which every text begins a new one."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths, self.device = tuple(lengths), device
        self.L = min(_CHUNK, max(lengths))
        self.n_chunks = [-(-n // self.L) for n in lengths]

    @cached_property
    def slots(self) -> Tensor:
        """The slot of each token among those of all chunks, (N,)."""
        starts = [0, *accumulate(n * self.L for n in self.n_chunks)]
        found = [torch.arange(n) + start for n, start in zip(self.lengths, starts, strict=False)]
        return torch.cat(found).to(self.device)

    def cut(self, x: Tensor) -> Tensor:
        """Returns x (N, V, ...) in chunks, (M, V, L, ...); padding is zeros, which change no state."""
        padded = x.new_zeros(sum(self.n_chunks) * self.L, *x.shape[1:]).index_copy(0, self.slots, x)
        return padded.unflatten(0, (-1, self.L)).transpose(1, 2)

    def joined(self, x: Tensor) -> Tensor:
        """Returns x (M, V, L, ...) as one row of all tokens, (N, V, ...)."""
        return x.transpose(1, 2).flatten(0, 1).index_select(0, self.slots)


def decays(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sums of the logarithms so far, (M, V, L), and the decay from token to token, (M, V, L, L).

    Args:
        log_decay: logarithm of each token's decay, (M, V, L).
    """
    so_far = log_decay.cumsum(-1)
    L = so_far.size(-1)
    later = torch.ones(L, L, dtype=torch.bool, device=so_far.device).triu(1)
    return so_far, (so_far.unsqueeze(-1) - so_far.unsqueeze(-2)).masked_fill(later, -torch.inf).exp()


def from_chunk_to_chunk(
    q: Tensor,
    k: Tensor,
    values: Tensor,
    so_far: Tensor,
    within: Tensor,
    chunks: Chunks,
    initial: Tensor | None,
    of_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (N, V, dv) of all texts, and the state after each, (n, V, dk, dv).

    Args:
        q, k, values: (M, V, L, ...).
        so_far: see `decays`.
        within: what each token's output takes of the values of its chunk, (M, V, L, L).
        initial: state before each text; None means zeros.
        of_state: what the values lose of the state before the chunk, (M, V, L, dk); None is nothing.
    """
    q = q * so_far.exp().unsqueeze(-1)
    k = k * (so_far[..., -1:] - so_far).exp().unsqueeze(-1)
    whole = so_far[..., -1, None, None].exp()  # (M, V, 1, 1)
    n_chunks, ends = chunks.n_chunks, list(accumulate(chunks.n_chunks))
    outputs: list[Tensor] = [values] * len(values)
    zeros = values.new_zeros(values.size(1), k.size(-1), values.size(-1))
    states = list(initial) if initial is not None else [zeros] * len(n_chunks)
    for step in range(max(n_chunks)):  # all texts that are so long at once
        here = [i for i, n in enumerate(n_chunks) if n > step]
        at = [ends[i] - n_chunks[i] + step for i in here]
        S = torch.stack([states[i] for i in here])
        new = values[at] if of_state is None else values[at] - of_state[at] @ S
        y = q[at] @ S + within[at] @ new
        S = S * whole[at] + k[at].mT @ new
        for i, chunk, state, output in zip(here, at, S, y, strict=True):
            states[i], outputs[chunk] = state, output
    return chunks.joined(torch.stack(outputs)), torch.stack(states)
