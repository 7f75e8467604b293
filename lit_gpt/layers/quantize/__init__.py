"""Quantized base weights in 4 or 8 bits: `quantized(linear, kind)` makes the layer that replaces `linear`."""

from typing import Any

import torch
from torch import nn

from lit_gpt.errors import UserError
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.quantize.bnb import FourBitLinear, package
from lit_gpt.layers.quantize.four_bits import FourBits
from lit_gpt.layers.quantize.frozen import QuantizedLinear
from lit_gpt.layers.quantize.kinds import QUANTIZATIONS

_NOT_QUANTIZED = ("lm_head", "gate", "in_a", "in_b")
"""Layers that are not quantized: the output head, which every logit depends on and which may be tied to the embeddings,
the router of a mixture of experts, which is small and whose errors send tokens to other experts, and the projections
to the decay and the strength of the gated delta rule, which have one channel a head."""


def quantizable(model: nn.Module) -> set[str]:
    """Returns the names of the linear layers that --quantize quantizes: all in the blocks except the router."""
    linear = (name for name, module in model.named_modules() if isinstance(module, LinearLayer))
    return {name for name in linear if name.rpartition(".")[2] not in _NOT_QUANTIZED}


def quantized(linear: LinearLayer, kind: str, kept: FourBits | None = None) -> QuantizedLinear:
    """Returns a layer with the quantized weight of `linear`, on the same device.

    Args:
        kind: key of QUANTIZATIONS.
        kept: the weight in 4 bits as the checkpoint has it, which is not quantized again if `kind` has its values.

    Raises:
        UserError: the package bitsandbytes is needed and not installed.
    """
    if kept is not None and kind in (f"bnb.{kept.values}", f"bnb.{kept.values}-dq"):
        return FourBitLinear(linear, kept.values, double=kind.endswith("-dq"), kept=kept)
    return QUANTIZATIONS[kind].make(linear)


def require_quantizable(kind: str, precision: Any, device: torch.device) -> None:
    """Checks that --quantize can be used with this precision, this device and the installed packages.

    Args:
        kind: key of QUANTIZATIONS.
        precision: Fabric's name of the precision, such as bf16-true.

    Raises:
        UserError: the kind of weights does not support the precision or the device, or needs a package.
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
