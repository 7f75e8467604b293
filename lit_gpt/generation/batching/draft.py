"""A draft: a smaller model of the same tokenizer that guesses what a text goes on with.

Its keys and values lie in the pool of the model that it guesses for, at the same positions, so that whatever the
scheduler does with a row's extent holds for both. Where they are missing, guesses are worse, and texts stay the same.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.checkpoints.base import load_pretrained
from lit_gpt.errors import UserError, shown
from lit_gpt.generation.batching.batch import Piece
from lit_gpt.generation.batching.forward import ExtentModel
from lit_gpt.generation.batching.pool import Pool
from lit_gpt.generation.batching.rows import Row
from lit_gpt.generation.cpu.products import speeds_up
from lit_gpt.generation.sampling.sampler import Sampler
from lit_gpt.lightning import Fabric
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer

_CHUNK = 512
"""Tokens that the draft reads at a time."""


def load_draft(fabric: Fabric, checkpoint_dir: Path, tokenizer: Tokenizer) -> GPT:
    """Returns the model of a folder, which is to guess for a model with `tokenizer`.

    Raises:
        UserError: there is no checkpoint, or its tokens are others.
    """
    own = Tokenizer(checkpoint_dir)
    for i in range(min(own.vocab_size, tokenizer.vocab_size)):
        mine, other = own.id_to_token(i), tokenizer.id_to_token(i)
        if mine != other:
            raise UserError(
                f"--draft_dir {checkpoint_dir} has another tokenizer: its token {i} is {shown(mine)}, and the model's "
                f"is {shown(other)}"
            )
    return load_pretrained(fabric, checkpoint_dir)


class DraftModel:
    """A model that guesses for the rows of an engine.

    Args:
        model: the draft, in eval mode, on the device of the pool.
        pool: the engine's pool, which gets layers for the draft.
    """

    def __init__(self, model: GPT, pool: Pool) -> None:
        beside = pool.beside(model)
        fast = beside.k[0].dtype == torch.float32 and speeds_up(model)
        self.model, self.extents = model, ExtentModel(model, beside, {}, fast)

    def guess(self, rows: Sequence[Row], lengths: Sequence[int], sampler: Sampler) -> list[list[int]]:
        """Returns so many tokens that the draft draws for each row, with the row's own settings and noise."""
        guesses: list[list[int]] = [[] for _ in rows]
        room = self.model.config.block_size
        wanted = [min(n, room - len(row.ids)) for row, n in zip(rows, lengths, strict=True)]
        for row in rows:
            if row.draft_start != row.start:  # it was moved, or comes from other texts, of which much may lack
                row.draft_start, row.n_draft = row.start, 0
        due = [i for i, n in enumerate(wanted) if n > 0 and self._knows(rows[i])]
        for i in due:
            self._catch_up(rows[i])
        n_read = [row.n_draft for row in rows]
        while due:
            texts = [[*rows[i].ids, *guesses[i]] for i in due]
            logits = self._logits([_piece(rows[i], t, n_read[i]) for i, t in zip(due, texts, strict=True)])
            logits = F.pad(logits, (0, sampler.vocab_size - logits.size(1)), value=-torch.inf)  # or cuts padding off
            drawn = sampler.draw(logits, [rows[i].slot or 0 for i in due], [guesses[i] for i in due]).tolist()
            for i, text, token in zip(due, texts, drawn, strict=True):
                n_read[i] = len(text)
                guesses[i].append(token)
                rows[i].n_draft = len(rows[i].ids)  # what it read of its guesses may be wrong, and is read again
            due = [i for i in due if len(guesses[i]) < wanted[i]]
        return guesses

    def _knows(self, row: Row) -> bool:
        """Returns whether the draft has all tokens of a row's text: the model may have some more."""
        return max(row.ids[row.n_draft :], default=0) < self.model.config.padded_vocab_size

    def _catch_up(self, row: Row) -> None:
        """Reads a row's text up to its last tokens, if there is much that the draft has not read."""
        while len(row.ids) - row.n_draft > _CHUNK:
            self.extents.hidden([_piece(row, row.ids[: row.n_draft + _CHUNK], row.n_draft)])
            row.n_draft += _CHUNK

    def _logits(self, pieces: Sequence[Piece]) -> Tensor:
        """Returns the draft's logits after the last token of each piece, (B, V) fp32."""
        ends = torch.tensor([len(piece.ids) for piece in pieces]).cumsum(0) - 1
        hidden = self.extents.hidden(pieces)
        return self.extents.logits(hidden[ends.to(hidden.device)], [None] * len(pieces)).float()


def _piece(row: Row, text: Sequence[int], n_read: int) -> Piece:
    """Returns what a draft feeds that has read the first `n_read` tokens of a text."""
    assert row.start is not None
    return Piece(text[n_read:], n_read, start=row.start, is_long=False)
