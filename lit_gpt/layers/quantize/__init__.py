"""Base weights in 4 or 8 bits: `quantized(linear, kind)` is the layer that takes the place of `linear`."""

from typing import Any

import torch
from torch import nn

from lit_gpt.errors import UserError
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.quantize.bnb import package
from lit_gpt.layers.quantize.frozen import QuantizedLinear
from lit_gpt.layers.quantize.kinds import QUANTIZATIONS

_KEPT = ("lm_head", "gate")
"""Layers that are not quantized: the head, on which every probability rests and which may be the embeddings, and the
router of a mixture, which is small and whose errors send tokens elsewhere."""


def quantizable(model: nn.Module) -> set[str]:
    """Names of the linear layers that --quantize means: all but those of _KEPT, that is, all that the blocks compute
    with."""
    linear = (name for name, module in model.named_modules() if isinstance(module, LinearLayer))
    return {name for name in linear if name.rpartition(".")[2] not in _KEPT}


def quantized(linear: LinearLayer, kind: str) -> QuantizedLinear:
    """A layer that computes about what `linear` does, from a weight in few bits, on the same device.

    Args:
        kind: key of QUANTIZATIONS.

    Raises:
        UserError: a package is missing.
    """
    return QUANTIZATIONS[kind].make(linear)


def require_quantizable(kind: str, precision: Any, device: torch.device) -> None:
    """
    Args:
        kind: key of QUANTIZATIONS.
        precision: Fabric's name of the precision, such as bf16-true.

    Raises:
        UserError: that precision, that device or what is installed does not go with that kind of weights.
    """
    if "mixed" in str(precision):
        raise UserError(
            f"--quantize {kind} does not go with --precision {precision}, which is for weights in 32 bits; "
            f"pass --precision {str(precision).replace('mixed', 'true')}"
        )
    if kind.startswith("bnb."):
        package()
    if kind == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError(
            f"--quantize fp8 needs a GPU of compute capability 8.9 or more, and {torch.cuda.get_device_name(device)} "
            f"has {'.'.join(map(str, torch.cuda.get_device_capability(device)))}; pass --quantize int8"
        )
