"""What a decoder looks like, as plain data. Imports nothing but the standard library."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from lit_gpt.errors import UserError


@dataclass
class Config:
    """Sizes and traits of one decoder. Every field but the first three is read by `lit_gpt/model.py`.

    Raises:
        UserError: sizes that contradict each other.
    """

    name: str = ""
    """Short name, e.g. `pythia-160m`."""
    hf_repo: str = ""
    """Hugging Face repository the weights come from, `org/name`; empty if they come from somewhere else."""
    architecture: str = ""
    """Key of `lit_gpt.families.ARCHITECTURES`: whose weight names the checkpoint had, e.g. `gpt_neox`."""

    # sizes
    n_layer: int = 16
    n_head: int = 32
    n_embd: int = 4096
    head_size: int = 0
    """Channels per head; 0 means n_embd / n_head."""
    n_query_groups: int = 0
    """Key/value heads; 0 means n_head. n_head is MHA, 1 is MQA, in between is GQA (arXiv:2305.13245)."""
    intermediate_size: int = 0
    """Hidden channels of the MLP; 0 means 4 * n_embd."""
    block_size: int = 2048
    """Longest sequence, in tokens."""
    vocab_size: int = 50254
    """Tokens the tokenizer knows."""
    padding_multiple: int = 512
    padded_vocab_size: int = 0
    """Rows of the embedding table; 0 means vocab_size rounded up to a multiple of padding_multiple."""

    # the block
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    mlp: Literal["gelu", "swiglu"] = "gelu"
    parallel_residual: bool = True
    """x + attn(norm(x)) + mlp(norm(x)) rather than one after the other."""
    bias: bool = True
    """Biases on the linear layers of the blocks."""
    tie_embeddings: bool = False
    """The output projection is the embedding table."""

    # rotary embeddings
    rotary_percentage: float = 0.25
    """Part of each head's channels that is rotated."""
    rope_base: float = 10000.0
    rope_condense_ratio: float = 1.0
    """Positions are divided by this (linear rope scaling, arXiv:2306.15595)."""

    def __post_init__(self) -> None:
        if not self.head_size:
            if self.n_embd % self.n_head:
                raise UserError(f"{self.name}: n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
            self.head_size = self.n_embd // self.n_head
        self.n_query_groups = self.n_query_groups or self.n_head
        if self.n_head % self.n_query_groups:
            raise UserError(
                f"{self.name}: n_head={self.n_head} is not a multiple of n_query_groups={self.n_query_groups}"
            )
        if self.rope_n_elem % 2:
            raise UserError(
                f"{self.name}: rotary_percentage={self.rotary_percentage} of head_size={self.head_size} "
                f"is {self.rope_n_elem} channels, and rotation needs an even number"
            )
        self.intermediate_size = self.intermediate_size or 4 * self.n_embd
        rounded_up = math.ceil(self.vocab_size / self.padding_multiple) * self.padding_multiple
        self.padded_vocab_size = self.padded_vocab_size or rounded_up
        self.vocab_size = min(self.vocab_size, self.padded_vocab_size)

    @property
    def rope_n_elem(self) -> int:
        """Channels of each head that are rotated."""
        return int(self.rotary_percentage * self.head_size)

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Output channels of q, k and v, in the order `attn.qkv` stacks them."""
        kv = self.n_query_groups * self.head_size
        return self.n_head * self.head_size, kv, kv

    @classmethod
    def from_name(cls, name: str, **overrides: Any) -> "Config":
        """Look a model up by short name or `org/name`.

        Raises:
            UserError: no family declares `name`; the message lists close matches.
        """
        from lit_gpt.families import find

        return cls(**{**find(name), **overrides})

    @classmethod
    def from_json(cls, path: Path) -> "Config":
        """Read what `to_json` wrote.

        Raises:
            UserError: not JSON, or a field we do not have.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as e:
            raise UserError(f"{path} is not valid JSON ({e}); run scripts/convert_hf_checkpoint.py again") from e
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known) if isinstance(values, dict) else ["a list or a plain value"]
        if unknown:
            raise UserError(f"{path} is not a configuration of this toolkit: it has {unknown[0]!r}")
        return cls(**values)

    def to_json(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
