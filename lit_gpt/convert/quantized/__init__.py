"""Reads weights that other tools have quantized as the 16-bit weights that these stand for (`settings`: which)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.convert.quantized.four_bit import STATE, four_bits
from lit_gpt.convert.quantized.integers import awq, gptq, packed
from lit_gpt.convert.quantized.mxfp4 import BLOCKS, mxfp4
from lit_gpt.convert.quantized.parts import Parts, Weight
from lit_gpt.convert.quantized.scaled import compressed, eight_bits, fp8
from lit_gpt.convert.quantized.settings import read_settings, without_settings
from lit_gpt.errors import UserError
from lit_gpt.files import Spec
from lit_gpt.files.headers import ONLY_READ

__all__ = ["dequantized", "read_settings", "without_settings"]

_Reader = Callable[[Parts, str], Weight]
_FINDERS: dict[str, tuple[tuple[str, str, _Reader], ...]] = {
    "awq": ((".qweight", ".weight", awq),),
    "bitsandbytes": (
        (f".weight{STATE}nf4", ".weight", four_bits),
        (f".weight{STATE}fp4", ".weight", four_bits),
        (".SCB", ".weight", eight_bits),
    ),
    "compressed-tensors": ((".weight_packed", ".weight", packed), (".weight_scale", ".weight", compressed)),
    "fp8": ((".weight_scale_inv", ".weight", fp8),),
    "gptq": ((".qweight", ".weight", gptq),),
    "mxfp4": ((BLOCKS, "", mxfp4),),
}
"""Method -> the ending of the tensor that marks a quantized weight, the weight's ending, and the function that finds
its other tensors. compressed-tensors' packed weights have `.weight_scale`, too, and are found first."""
_BY_CODES = (fp8, compressed, eight_bits)
"""Functions that take the name of the codes, which is that of the weight."""
_ACTIVATIONS = {"input_scale", "output_scale", "activation_scale", "input_zero_point", "k_scale", "v_scale", "q_scale"}
"""Last names of tensors that say how activations and the cache are quantized in use, and nothing of the weights."""
_COMPANIONS = (".absmax", ".quant_map", ".SCB", "_scale_inv", ".weight_scale", ".weight_packed", ".qweight", ".qzeros")
_COMPANIONS += (f"_proj{BLOCKS}", "_proj_scales", f"{STATE}nf4", f"{STATE}fp4", ".nested_absmax")
"""Endings of tensors that belong to quantized weights."""


class _Dequantized(NamedTuple):
    """The tensors of a checkpoint whose weights are quantized, as those of one in 16 bits."""

    specs: dict[str, Spec]
    get: Callable[[str], Tensor]
    weights: dict[str, Weight]
    """The quantized weights by name."""
    name: str
    """What the method is called, such as `GPTQ in 4 bits`; empty if no weight is quantized."""


def dequantized(
    hf: Mapping[str, Any],
    specs: Mapping[str, Spec],
    get: Callable[[str], Tensor],
    where: str,
    dtype: torch.dtype | None = None,
) -> _Dequantized:
    """Returns the tensors of a checkpoint with each quantized weight in the place of those that it is stored as.

    No values of weights are read here: shapes and dtypes tell whether they can be, besides what some formats keep in
    tensors of a few bytes.

    Args:
        hf: the parsed config.json.
        specs: shape and dtype of each tensor of the files.
        get: reads one of them.
        where: path of config.json, for messages.
        dtype: dtype of the weights that were quantized; None is that which config.json states, else fp32.

    Raises:
        UserError: weights are quantized in a way that is not read, or their tensors do not go together.
    """
    settings = read_settings(hf, where)
    weights: dict[str, Weight] = {}
    if settings is not None:
        parts = Parts(specs, get, settings)
        used: set[str] = set()
        for ending, its, find in _FINDERS[settings.method]:
            for name in [n for n in specs if n.endswith(ending) and n not in used]:
                weight = f"{name.removesuffix(ending)}{its}"
                found = weights[weight] = find(parts, weight if find in _BY_CODES else name)
                used.update(found.parts)
        used.update(name for name in specs if name.rpartition(".")[2] in _ACTIVATIONS)
        specs = {name: spec for name, spec in specs.items() if name not in used}
    _require_plain(specs, where, settings.name if settings else "")
    to = dtype or _stated_dtype(hf)
    plan = {weight: Spec(found.shape, to) for weight, found in weights.items()}

    def read(name: str) -> Tensor:
        return weights[name].read(to) if name in weights else get(name)

    return _Dequantized({**specs, **plan}, read, weights, settings.name if settings and weights else "")


def _stated_dtype(hf: Mapping[str, Any]) -> torch.dtype:
    """Returns the dtype of the model before it was quantized, which config.json states; fp32 if it does not."""
    stated = hf.get("dtype") or hf.get("torch_dtype")
    known = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return known.get(stated, torch.float32) if isinstance(stated, str) else torch.float32


def _require_plain(specs: Mapping[str, Spec], where: str, method: str) -> None:
    """Checks that no tensors of quantized weights are left; raises UserError with the first if there are."""
    for name, spec in sorted(specs.items(), key=lambda item: item[1].dtype not in ONLY_READ):
        if spec.dtype in ONLY_READ or name.endswith(_COMPANIONS):
            kind = f"{str(spec.dtype).removeprefix('torch.')} {list(spec.shape)}"
            said = f"does not say how ({method} has no such tensor)" if method else "says nothing of it"
            raise UserError(
                f"{where}: the files hold {name!r} ({kind}), as quantized weights have it, and the "
                f"quantization_config {said}; get config.json from where the weights came from, or get the model in "
                "16 bits"
            )
