"""Checks that a checkpoint's tokenizer fits its embedding table, and determines the rows of the table."""

import math
from dataclasses import replace
from pathlib import Path

from lit_gpt.config import Config
from lit_gpt.errors import UserError
from lit_gpt.tokenizer import Tokenizer

_N_NAMED = 5
"""Number of tokens without a row that a message names."""


def check_vocabulary(config: Config, checkpoint_dir: Path) -> Tokenizer:
    """Returns the tokenizer of a model that has a row for each of its tokens; raises UserError if it has not."""
    pad_vocabulary(config, 1, checkpoint_dir)
    return Tokenizer(checkpoint_dir)


def pad_vocabulary(config: Config, multiple: int, checkpoint_dir: Path) -> Config:
    """Returns `config` with the vocabulary's rows padded to a multiple, and to at least one row for each token.

    A pad token is often added to a tokenizer but not to its model. Prints which tokens get a row of zeros.

    Args:
        config: the configuration with the rows of the checkpoint's own table.
        multiple: 1 leaves the rows as they are.

    Raises:
        UserError: `multiple` is below 1, the tokenizer is missing, is that of another model, or has tokens without a
            row while `multiple` is 1.
    """
    if multiple < 1:
        raise UserError(f"--pad_vocab_multiple {multiple} is no number of rows; pass 1 to leave them as they are")
    tokenizer, rows = Tokenizer(checkpoint_dir), config.padded_vocab_size
    n_tokens = tokenizer.vocab_size
    sizes = f"{checkpoint_dir}: the tokenizer has {n_tokens:,} tokens and the model {rows:,} rows"
    if tokenizer.n_pieces > rows:
        raise UserError(f"{sizes}; they do not belong together")
    if n_tokens > rows:
        ids = [i for i in range(rows, n_tokens) if tokenizer.id_to_token(i) is not None]
        named = ", ".join(repr(tokenizer.id_to_token(i)) for i in ids[:_N_NAMED]) + " ..." * (len(ids) > _N_NAMED)
        if multiple == 1:
            raise UserError(
                f"{sizes}, none for {named}; take the model's own tokenizer, or, if nothing was trained with them, "
                "pass --pad_vocab_multiple 64 to scripts/convert_hf_checkpoint.py, which gives them rows of zeros"
            )
        print(f"Rows of zeros for {named}: the tokenizer has them, and the checkpoint has no rows for them")
    return replace(config, padded_vocab_size=math.ceil(max(rows, n_tokens) / multiple) * multiple)
