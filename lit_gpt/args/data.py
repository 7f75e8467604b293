"""Where rows come from, and how they become tokens."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_gpt.args.require import require
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class SourceArgs:
    """Where the rows come from."""

    data_file: Path | None = None
    """A local file to read instead of downloading one."""
    validation_file: Path | None = None
    """Rows for validation; a part of the rows is held out if not given."""
    data_file_url: str = ""
    """Where to download from."""
    data_file_name: str = ""
    """What to call the download, in the folder of the prepared data; it is not fetched again."""


@dataclass(frozen=True)
class DatasetArgs:
    """A data set of the Hugging Face hub in the place of a file; needs pip install "lit-gpt[datasets]"."""

    dataset: str | None = None
    """Its id, such as tatsu-lab/alpaca; a private or gated one needs HF_TOKEN. Its rows are kept in the folder of the
    prepared data and not fetched again."""
    dataset_config: str | None = None
    """Its configuration (subset), if it has several."""
    split: str = "train"
    """Rows to train on."""
    validation_split: str | None = None
    """Rows for validation; a part of the others is held out if not given."""

    def __post_init__(self) -> None:
        if self.dataset is None and (self.dataset_config or self.validation_split or self.split != "train"):
            raise UserError("--dataset_config, --split and --validation_split go with --dataset")


@dataclass(frozen=True)
class PrepareArgs:
    """How rows become tokens."""

    prompt_style: str | None = None
    """Name of the prompt style: alpaca, chatml, plain, llama2, vicuna ... (docs/prepare_data.md), or chat_template for
    the model's own. If not given, instructions take alpaca, and conversations the checkpoint's chat template, or vicuna
    where it has none."""
    mask_inputs: bool = True
    """Train on the responses only."""
    last_turn_only: bool = False
    """Train on the last response of a conversation only, not on all of them."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """What else the chat template is given, such as "{enable_thinking: false}"; a part of the style that is stored."""
    max_seq_length: int | None = None
    """Longest sample in tokens; None is the model's own limit."""
    truncation: Literal["drop", "cut_prompt", "cut_end", "error"] = "drop"
    """What happens to longer samples: cut_prompt shortens the texts of the user, cut_end the response."""
    bad_rows: Literal["error", "drop"] = "error"
    """What happens to rows that do not fit their schema: error ends with the place of the first, drop counts them."""
    test_split_fraction: float = 0.03865
    """Part of the rows that is held out for validation; unused with --validation_file."""
    seed: int = 42
    """Decides which rows are held out."""
    overwrite: bool = False
    """Replace the data set that destination_path holds."""
    check: bool = True
    """Look the data over at the end, as scripts/check_data.py does."""

    def __post_init__(self) -> None:
        if not 0 < self.test_split_fraction < 1:
            raise UserError(f"--test_split_fraction {self.test_split_fraction} must be between 0 and 1")
        if self.last_turn_only and not self.mask_inputs:
            raise UserError("--last_turn_only true trains on less than --mask_inputs false; pass one of them")
        if self.max_seq_length is not None:
            require("max_seq_length", self.max_seq_length, at_least=2)
