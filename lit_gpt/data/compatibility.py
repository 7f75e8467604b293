"""Checks that a prepared data set suits the checkpoint that is to be trained on it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_gpt.data.store import Samples
from lit_gpt.errors import UserError
from lit_gpt.prompts import CHAT_TEMPLATE, read_template
from lit_gpt.prompts.wording import reworded, say
from lit_gpt.tokenizer import Tokenizer


def check_compatible(meta: dict[str, Any], folder: Path, tokenizer: Tokenizer, prompt_style: str | None = None) -> None:
    """Checks that a prepared data set suits a run; notes on stderr if its prompt style has changed since.

    Args:
        tokenizer: the tokenizer of the checkpoint to be trained.
        prompt_style: the prompt style that the run names; None takes the data's.

    Raises:
        UserError: the data was prepared with another tokenizer, prompt style or chat template.
    """
    check_tokenizer(meta, folder, tokenizer)
    if prompt_style is not None and prompt_style != meta["prompt_style"]:
        raise UserError(
            f"{folder} was prepared with the prompt style {meta['prompt_style']!r}, not {prompt_style!r}; "
            f"prepare it again with --prompt_style {prompt_style}, or leave the flag out"
        )
    if message := reworded(meta):
        say(message)
    template = meta.get(CHAT_TEMPLATE)
    if template is not None and template != read_template(tokenizer.path.parent):
        raise UserError(
            f"{folder} was prepared with another chat template than {tokenizer.path.parent} has now; prepare it again, "
            f"or put the one of its meta.json back"
        )


def check_vocabulary(splits: Iterable[Samples], folder: Path, n_ids: int) -> None:
    """Checks that the model has a row for every token of a prepared data set.

    Args:
        n_ids: rows of the model's embedding table.

    Raises:
        UserError: an id or a label is larger.
    """
    for samples in splits:
        largest = samples.max_id
        if largest >= n_ids:
            raise UserError(
                f"{folder} has the token {largest:,}, and the model's vocabulary has {n_ids:,} rows; prepare it again"
            )


def check_lengths(splits: Iterable[Samples], folder: Path, block_size: int) -> None:
    """Checks that the model has room for every sample of a prepared data set, whose last token is no input.

    Args:
        block_size: most tokens that the model takes.

    Raises:
        UserError: a sample is longer.
    """
    longest = max(samples.longest for samples in splits)
    if longest > block_size + 1:
        raise UserError(
            f"{folder} has a sample of {longest:,} tokens, and the model has room for {block_size:,}; prepare it again "
            f"with this --checkpoint_dir, or with --max_seq_length {block_size}"
        )


def check_tokenizer(meta: dict[str, Any], folder: Path, tokenizer: Tokenizer) -> None:
    """Checks that the data set was prepared with this tokenizer; raises UserError if not."""
    if meta["tokenizer"] != tokenizer.fingerprint():
        raise UserError(
            f"{folder} was prepared with the tokenizer of {meta['checkpoint_dir']}, which is another one than the "
            "checkpoint's; prepare it again with this --checkpoint_dir"
        )
