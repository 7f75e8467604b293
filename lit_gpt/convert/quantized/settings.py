"""What `quantization_config` in config.json says of the weights, and which of it is read; anything else is refused."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from lit_gpt.errors import UserError, shown
from lit_gpt.records import require_types

_KEYS = ("quantization_config", "compression_config")
"""Keys of config.json with the settings; the second is the older one of compressed-tensors."""
_MLX = "quantization"
_NAMES = {
    "aqlm": "AQLM",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors of llm-compressor",
    "eetq": "EETQ",
    "fbgemm_fp8": "FP8 of FBGEMM",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "hqq": "HQQ",
    "modelopt": "ModelOpt",
    "mxfp4": "MXFP4",
    "quanto": "Quanto",
    "torchao": "torchao",
}
"""Common name of a quantization method, by `quant_method` in config.json."""
_BITS = (4, 8)
_READ = (
    "bitsandbytes in 4 and 8 bits, FP8, compressed-tensors (FP8, INT8, W4A16), GPTQ, AWQ and MXFP4 are; take one of "
    "these, or the 16-bit model that it was made of, which --quantize quantizes as it loads"
)
_PACKED, _PLAIN = "pack-quantized", ("float-quantized", "int-quantized", "naive-quantized", "dense", "mixed-precision")


class Block(NamedTuple):
    """Rows and columns of a matrix that share a scale; None stands for all of them."""

    rows: int | None
    columns: int | None


@dataclass(frozen=True)
class Settings:
    """What config.json says of quantized weights and their tensors do not."""

    method: str
    """`quant_method`."""
    name: str
    """What the method is called in messages, with its bits if it has several."""
    where: str
    """File in which it stands, for messages."""
    blocks: tuple[Block, ...] = ()
    """Blocks of the scales (FP8, compressed-tensors), of which the shape of the scales tells the one."""
    zeros_are_less_one: bool = field(default=True)
    """Whether GPTQ's zeros are stored minus one (the first version of its format)."""


def read_settings(hf: Mapping[str, Any], where: str) -> Settings | None:
    """Returns the settings of quantized weights in config.json; None if it states none.

    Args:
        hf: the parsed config.json.
        where: path of the file, for messages.

    Raises:
        UserError: the weights are quantized in a way that is not read; the message names it.
    """
    stated = next((hf[key] for key in (*_KEYS, _MLX) if hf.get(key)), None)
    if stated is None:
        return None
    stated = stated if isinstance(stated, dict) else {}
    method = stated.get("quant_method") or ""
    if not isinstance(method, str) or method not in _READERS:
        name = _name(method or stated.get("quant_type") or ("MLX" if hf.get(_MLX) else ""), stated)
        raise _unread(where, name or "a method that it does not name")
    require_types(where, stated, _TYPES)
    return _READERS[method](stated, _name(method, stated), where)


def without_settings(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Returns config.json of the same model with weights that are not quantized."""
    return {key: value for key, value in hf.items() if key not in _KEYS}


def _name(method: Any, stated: Mapping[str, Any]) -> str:
    """Returns what a method is called in messages, such as `GPTQ in 4 bits`."""
    name = _NAMES.get(method, method) if isinstance(method, str) else shown(method)
    numbers = (stated.get(key) for key in ("bits", "w_bit", "num_bits", "nbits"))
    loads = (n for n in _BITS if stated.get(f"load_in_{n}bit") or stated.get(f"_load_in_{n}bit"))
    bits = next((n for n in (*numbers, *loads) if n), None)
    return f"{name} in {shown(bits)} bits".strip() if bits else name


def _unread(where: str, kind: str, because: str = "") -> UserError:
    return UserError(
        f"{where}: by its quantization_config the weights are quantized ({kind}), which is not read{because}; {_READ}"
    )


_TYPES: dict[str, Any] = dict.fromkeys(("bits", "w_bit", "group_size", "q_group_size"), int | None)
_TYPES |= dict.fromkeys(("checkpoint_format", "format", "version", "backend", "pack_dtype"), str | None)
_TYPES |= {"weight_block_size": list[int] | None, "config_groups": dict[str, Any] | None}
"""Types of the values that are looked at."""


def _bitsandbytes(stated: Mapping[str, Any], name: str, where: str) -> Settings:
    return Settings("bitsandbytes", name, where)  # the tensors say all the rest


def _fp8(stated: Mapping[str, Any], name: str, where: str) -> Settings:
    block = stated.get("weight_block_size")
    if block is not None and (len(block) != 2 or min(block) < 1):
        raise _unread(where, name, f" with weight_block_size={shown(block)}")
    whole = Block(None, None)
    return Settings("fp8", name, where, (Block(*block), whole) if block else (whole,))


def _mxfp4(stated: Mapping[str, Any], name: str, where: str) -> Settings:
    return Settings("mxfp4", name, where)


def _gptq(stated: Mapping[str, Any], name: str, where: str) -> Settings:
    _require_bits(stated.get("bits"), where, name)
    form = stated.get("checkpoint_format") or stated.get("format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise _unread(where, name, f" in checkpoint_format={shown(form)}")
    return Settings("gptq", name, where, zeros_are_less_one=form == "gptq")


def _awq(stated: Mapping[str, Any], name: str, where: str) -> Settings:
    _require_bits(stated.get("bits") or stated.get("w_bit"), where, name, known=(4,))
    form = (stated.get("version") or stated.get("format") or "gemm").lower()
    if form != "gemm" or stated.get("backend") == "llm-awq":
        raise _unread(where, name, f" in the layout {form if form != 'gemm' else 'llm-awq'}")
    return Settings("awq", name, where)


def _compressed(stated: Mapping[str, Any], name: str, where: str) -> Settings:
    """Returns the settings of compressed-tensors, with the blocks of all groups of layers."""
    if stated.get("transform_config"):
        raise _unread(where, name, " with transform_config, rotations of the weights")
    sparse = stated.get("sparsity_config") or {}
    if not isinstance(sparse, dict) or sparse.get("format", "dense") != "dense":
        raise _unread(where, name, f" with sparsity_config={shown(sparse)}")
    blocks: dict[Block, None] = {}
    for group in (stated.get("config_groups") or {}).values():
        if not isinstance(group, dict) or not isinstance(group.get("weights") or {}, dict):
            raise _unread(where, name, f" with config_groups={shown(group)}")
        form = group.get("format") or stated.get("format") or ""
        if form not in (_PACKED, *_PLAIN):
            raise _unread(where, name, f" in format={shown(form)}")
        weights = group.get("weights") or {}
        blocks |= dict.fromkeys(_compressed_blocks(weights, f"{name} in {form}", where))
        if weights and form == _PACKED:
            _require_bits(weights.get("num_bits"), where, name)
    return Settings("compressed-tensors", name, where, tuple(blocks))


def _compressed_blocks(weights: Mapping[str, Any], name: str, where: str) -> list[Block]:
    """Returns the blocks of the scales of one group of layers; none if its weights are not quantized."""
    kinds = {"strategy": Literal["tensor", "channel", "group", "block"] | None, "group_size": int | None}
    kinds |= {"block_structure": list[int] | None, "type": Literal["int", "float"], "num_bits": int}
    require_types(f"{where}, quantization_config", weights, kinds)
    if not weights:
        return []
    if weights.get("type") == "float" and weights.get("num_bits") != 8:
        raise _unread(where, f"{name}, {shown(weights.get('num_bits'))}-bit floats")
    size, block = weights.get("group_size"), weights.get("block_structure")
    match weights.get("strategy"):
        case "block" if block is not None and len(block) == 2 and min(block) > 0:
            return [Block(*block)]
        case "group" if size is not None and size > 0:
            return [Block(1, size)]
        case "tensor":
            return [Block(None, None)]
        case "channel":
            return [Block(1, None)]
        case None:
            return [Block(1, size)] if size is not None and size > 0 else [Block(None, None), Block(1, None)]
        case strategy:
            raise _unread(where, name, f" with {strategy} scales and group_size={shown(size)}, {shown(block)}")


def _require_bits(bits: Any, where: str, name: str, known: tuple[int, ...] = _BITS) -> None:
    if bits not in known:
        raise _unread(where, name, f" (bits={shown(bits)})")


_READERS: dict[str, Callable[[Mapping[str, Any], str, str], Settings]] = {
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed,
    "fp8": _fp8,
    "gptq": _gptq,
    "mxfp4": _mxfp4,
}
