"""Penalties for tokens that a text has, for rows that each have their own, without making the host wait for the GPU.

Only the logits of tokens that a text has are read and written, a few thousand at most, not all of the vocabulary.

Letters: P lines of logits with penalties, V padded vocabulary, L tokens that a text has, A tokens supposed ahead.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.generation.request import Request, Sampling


def _is_penalized(s: Sampling) -> bool:
    """Returns whether any penalty is on."""
    return (s.repetition_penalty, s.presence_penalty, s.frequency_penalty) != (1, 0, 0)


class Penalties:
    """The tokens of rows with penalties, and what they do to logits.

    Args:
        vocab_size: V, number of logits of a row.
        device: where logits are.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.device = device
        self._lengths: dict[int, int] = {}
        """Row -> number of its entries in `_seen`."""
        self._factors = torch.zeros(0, 3, dtype=torch.float32, device=device)
        """Repetition, presence and frequency penalty of each row."""
        self._seen = torch.zeros(0, 1, dtype=torch.long, device=device)
        """Tokens of each row: those of its prompt, each once, then the generated ones; anything after them."""
        self._counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        """How often the generated text of each row has each token, (rows, V)."""

    def add(self, row: int, request: Request) -> None:
        """Starts to keep the tokens of a row; does nothing if its request has no penalty."""
        if not _is_penalized(s := request.sampling):
            return
        ids = sorted(set(request.ids))
        more_rows = max(0, row + 1 - len(self._seen))
        more_rows = max(more_rows, len(self._seen)) if more_rows else 0  # twice as many, so that few are copied
        more_tokens = max(0, len(ids) + request.max_new_tokens - self._seen.size(1))
        self._factors = _grown(self._factors, more_rows)
        self._counts = _grown(self._counts, more_rows)
        self._seen = _grown(self._seen, more_rows, more_tokens)
        factors = torch.tensor([s.repetition_penalty, s.presence_penalty, s.frequency_penalty], dtype=torch.float32)
        self._factors[row] = factors.to(self.device)
        self._counts[row] = 0
        self._seen[row, : len(ids)] = torch.tensor(ids, device=self.device)
        self._lengths[row] = len(ids)

    def remove(self, row: int) -> None:
        """Forgets the tokens of a row, if any are kept."""
        self._lengths.pop(row, None)

    def __contains__(self, row: int) -> bool:
        return row in self._lengths

    def advance(self, rows: Sequence[int], ids: Tensor) -> None:
        """Adds generated tokens, `ids` (B,), to the texts of `rows`, of which one may come several times."""
        lines = [i for i, r in enumerate(rows) if r in self._lengths]
        if not lines:
            return
        columns = []
        for i in lines:
            columns.append(self._lengths[rows[i]])
            self._lengths[rows[i]] += 1
        self._seen = _grown(self._seen, 0, max(0, max(columns) + 1 - self._seen.size(1)))
        at = on(self.device, [rows[i] for i in lines])
        ids = ids if len(lines) == len(rows) else ids[on(self.device, lines)]
        self._seen[at, on(self.device, columns)] = ids
        self._counts.index_put_((at, ids), self._counts.new_ones(len(lines)), accumulate=True)

    def apply(self, logits: Tensor, lines: Tensor, rows: Sequence[int], ahead: Sequence[Sequence[int]]) -> None:
        """Changes lines of logits, (B, V), in place.

        Args:
            lines: which lines have penalties, (P,).
            rows: the row of each of them.
            ahead: for each of them, tokens that its text is supposed to go on with.
        """
        at = on(self.device, list(rows)).unsqueeze(1)  # (P, 1)
        lengths = on(self.device, [self._lengths[r] for r in rows]).unsqueeze(1)
        seen = self._seen[at.squeeze(1), : max(self._lengths[r] for r in rows)]  # (P, L)
        ranks = torch.arange(seen.size(1), device=self.device)
        seen = torch.where(ranks < lengths, seen, seen[:, :1])  # a token that comes twice is written twice, the same
        longest = max(map(len, ahead))
        if longest:
            supposed = on(self.device, [[*a, *[-1] * (longest - len(a))] for a in ahead])  # (P, A)
            seen = torch.cat([seen, torch.where(supposed < 0, seen[:, :1], supposed)], 1)
        counts = self._counts[at, seen]
        if longest:
            counts = counts + (seen.unsqueeze(-1) == supposed.unsqueeze(1)).sum(-1)
        repetition, presence, frequency = self._factors[at.squeeze(1)].unsqueeze(-1).unbind(1)  # (P, 1) each
        lines = lines.unsqueeze(1)
        x = logits[lines, seen]
        x = torch.where(x > 0, x / repetition, x * repetition)
        logits[lines, seen] = x - frequency * counts - presence * (counts > 0)


def _grown(x: Tensor, more_rows: int, more_columns: int = 0) -> Tensor:
    """Returns x with more rows and columns of zeros; x itself, which may be large, if there are none."""
    return F.pad(x, (0, more_columns, 0, more_rows)) if more_rows or more_columns else x


def on(device: torch.device, values: Sequence[object], dtype: torch.dtype = torch.long) -> Tensor:
    """Returns a tensor on a device; the host does not wait until it is there."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
