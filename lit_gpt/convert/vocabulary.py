"""Check that a checkpoint's tokenizer and embedding table belong together."""

import math
from dataclasses import replace
from pathlib import Path

from lit_gpt.config import Config
from lit_gpt.errors import UserError
from lit_gpt.tokenizer import Tokenizer


def check_vocabulary(config: Config, checkpoint_dir: Path) -> None:
    """Raises: UserError if the tokenizer is missing or has tokens that the model has no row for."""
    n_tokens = Tokenizer(checkpoint_dir).vocab_size
    if n_tokens > config.padded_vocab_size:
        raise UserError(
            f"{checkpoint_dir}: the tokenizer has {n_tokens:,} tokens and the model {config.padded_vocab_size:,} rows; "
            "they do not belong together"
        )


def pad_vocabulary(config: Config, multiple: int) -> Config:
    """`config` with rows for its vocabulary up to a multiple. Raises: UserError if `multiple` is below 1."""
    if multiple < 1:
        raise UserError(f"--pad_vocab_multiple {multiple} is no number of rows; pass 1 to leave them as they are")
    return replace(config, padded_vocab_size=math.ceil(config.padded_vocab_size / multiple) * multiple)
