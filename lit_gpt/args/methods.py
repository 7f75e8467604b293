"""Arguments of the finetuning methods."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from lit_gpt.args.require import require
from lit_gpt.errors import UserError

_LARGEST = 2**20
"""Largest rank or number of vectors, beyond that of any layer."""
LORA_TARGETS = ("query", "key", "value", "projection", "mlp", "per_layer", "head")
"""What LoRA can adapt: the flags are `--lora_query` and so on."""


@dataclass(frozen=True)
class LoRAArgs:
    """Arguments of LoRA: which layers it adapts, and how. On 4-bit weights (--quantize bnb.nf4) it is QLoRA."""

    lora_r: int = 8
    """Rank of each update."""
    lora_alpha: float = 16
    """Scale of the updates: lora_alpha / lora_r, or as --lora_scaling says."""
    lora_dropout: float = 0.05
    """Dropout on the input of the updates."""
    lora_query: bool = True
    """Adapt the query rows of attention."""
    lora_key: bool = False
    """Adapt the key rows of attention."""
    lora_value: bool = True
    """Adapt the value rows of attention."""
    lora_projection: bool = False
    """Adapt the output projection of attention."""
    lora_mlp: bool = False
    """Adapt all layers of the MLPs."""
    lora_per_layer: bool = False
    """Adapt the layers of per-layer inputs (Gemma 4 E2B and E4B): the model's projection, and two in each block."""
    lora_head: bool = False
    """Adapt the output projection of the model."""
    lora_scaling: Literal["plain", "rslora"] = "plain"
    """rslora divides lora_alpha by the square root of lora_r, so that high ranks learn as fast (arXiv:2312.03732)."""
    lora_init: Literal["kaiming", "pissa"] = "kaiming"
    """pissa trains the principal part of the weights and freezes the rest (arXiv:2404.02948); kaiming adds to them."""
    lora_dora: bool = False
    """DoRA: also train a magnitude for each adapted output channel (arXiv:2402.09353), for one more matmul a layer."""
    lora_plus_ratio: float = 1.0
    """LoRA+: learning rate of the matrices B relative to that of the matrices A (arXiv:2402.12354)."""
    ranks: ClassVar[dict[str, int] | None] = None  # a field of LoRARunArgs only, so that it is no flag
    whole: ClassVar[tuple[str, ...]] = ()

    @property
    def scaling(self) -> float:
        """Factor of the updates."""
        return self.lora_alpha / (self.lora_r if self.lora_scaling == "plain" else math.sqrt(self.lora_r))

    def with_rank(self, r: int) -> "LoRAArgs":
        """Returns the same arguments for updates of another rank and the same scale."""
        if r == self.lora_r:
            return self
        return replace(self, lora_r=r, lora_alpha=self.scaling * r, lora_scaling="plain")

    def __post_init__(self) -> None:
        require("lora_r", self.lora_r, at_least=1, at_most=_LARGEST)
        for name in ("lora_alpha", "lora_plus_ratio"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name} {getattr(self, name)} must be more than 0")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout {self.lora_dropout} must be at least 0 and less than 1")
        if not any(getattr(self, f"lora_{t}") for t in LORA_TARGETS):
            raise UserError(f"LoRA adapts nothing: set one of {', '.join(f'--lora_{t} true' for t in LORA_TARGETS)}")


@dataclass(frozen=True)
class LoRARunArgs(LoRAArgs):
    """Arguments of a LoRA run that was made of another toolkit's adapter, which may differ from layer to layer."""

    ranks: dict[str, int] | None = None
    """Rank of each update by its name, such as `transformer.h.0.attn.qkv.query` or `lm_head`: these updates are there
    and no others. None stands for lora_r wherever the flags say."""
    whole: tuple[str, ...] = ()
    """Names of the parameters that the run replaces, in the adapted model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for r in (self.ranks or {}).values():
            require("lora_r", r, at_least=0, at_most=_LARGEST)


@dataclass(frozen=True)
class AdapterArgs:
    """Arguments of the adapter methods: which layers read a learned prompt, and how long it is."""

    adapter_prompt_length: int = 10
    """Vectors in the prompt of a layer."""
    adapter_start_layer: int = 2
    """The first layer with a prompt, counted from 0."""

    def __post_init__(self) -> None:
        require("adapter_prompt_length", self.adapter_prompt_length, at_least=1, at_most=_LARGEST)
        require("adapter_start_layer", self.adapter_start_layer, at_least=0, at_most=_LARGEST)


@dataclass(frozen=True)
class FullArgs:
    """Arguments of full finetuning: there are none."""
