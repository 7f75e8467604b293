"""Arguments of data preparation: where rows come from, and how they become tokens."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_gpt.args.require import require
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class SourceArgs:
    """Arguments of the source of the rows."""

    data_file: Path | None = None
    """A local file to read instead of downloading one."""
    validation_file: Path | None = None
    """Rows for validation; a part of the rows is held out if not given."""
    data_file_url: str = ""
    """Address to download from."""
    data_file_name: str = ""
    """File name of the download, in the folder of the prepared data; it is not downloaded again."""


@dataclass(frozen=True)
class DatasetArgs:
    """Arguments of a data set of the Hugging Face hub instead of a file; needs pip install "lit-gpt[datasets]"."""

    dataset: str | None = None
    """Id of the data set, such as tatsu-lab/alpaca; a private or gated one needs HF_TOKEN. Its rows are kept in the
    folder of the prepared data and not downloaded again."""
    dataset_config: str | None = None
    """Configuration (subset) of the data set, if it has several."""
    split: str = "train"
    """Rows to train on."""
    validation_split: str | None = None
    """Rows for validation; a part of the others is held out if not given."""

    def __post_init__(self) -> None:
        if self.dataset is None and (self.dataset_config or self.validation_split or self.split != "train"):
            raise UserError("--dataset_config, --split and --validation_split go with --dataset")


@dataclass(frozen=True)
class PrepareArgs:
    """Arguments of tokenization."""

    prompt_style: str | None = None
    """Name of the prompt style: alpaca, chatml, plain, llama2, vicuna ... (docs/prepare_data.md), or chat_template for
    the model's own. If not given, instructions take alpaca, and conversations the checkpoint's chat template, or vicuna
    where it has none."""
    mask_inputs: bool = True
    """Train on the responses only."""
    last_turn_only: bool = False
    """Train on the last response of a conversation only, not on all responses."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables for the chat template, such as "{enable_thinking: false}"; stored as a part of the style."""
    max_seq_length: int | None = None
    """Longest sample in tokens; None is the model's own limit."""
    truncation: Literal["drop", "cut_prompt", "cut_end", "error"] = "drop"
    """What happens to longer samples: drop them, truncate the user's texts (cut_prompt) or the response (cut_end)."""
    bad_rows: Literal["error", "drop"] = "error"
    """What happens to rows that do not fit their schema: error stops at the first and names it, drop counts them."""
    test_split_fraction: float = 0.03865
    """Share of the rows that is held out for validation; unused with --validation_file."""
    seed: int = 42
    """Seed of the choice of held-out rows."""
    overwrite: bool = False
    """Replace the data set that destination_path holds."""
    check: bool = True
    """Check the data at the end, as scripts/check_data.py does."""

    def __post_init__(self) -> None:
        if not 0 < self.test_split_fraction < 1:
            raise UserError(f"--test_split_fraction {self.test_split_fraction} must be between 0 and 1")
        if self.last_turn_only and not self.mask_inputs:
            raise UserError("--last_turn_only true trains on less than --mask_inputs false; pass one of them")
        if self.max_seq_length is not None:
            require("max_seq_length", self.max_seq_length, at_least=2)
