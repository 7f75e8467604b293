"""Checks by its config.json whether a model can be converted, before its weights are downloaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.records import read_object

_QUANTIZED = ("quantization_config", "quantization")
"""Keys of config.json that mark a model quantized by transformers or by MLX."""
_SIZES = ("hidden_size", "n_embd", "d_model")
"""Keys of config.json, one of which is there if it describes a whole model."""
_WAY_OUT = "; docs/add_a_family.md says how to add a model, and --any_model true downloads this one all the same"


def check_supported(config_file: Path, repo_id: str, base_models: Sequence[str] = ()) -> None:
    """Checks that a model can be converted; raises UserError if not.

    Args:
        config_file: the model's config.json.
        base_models: models that its page names as what it was made from.

    Raises:
        UserError: the architecture or one of its fields is not supported, or the weights have fewer than 16 bits.
    """
    from lit_gpt.convert.configs import config_from_hf, find_architecture  # slow to import
    from lit_gpt.families.wrappers import unwrapped

    try:
        hf = read_object(config_file)
    except UserError:
        return  # the conversion reports what is wrong with it
    if not hf.keys() & {"architectures", "model_type"}:
        return
    if kind := _quantization_of(hf):
        other = f"download {' or '.join(base_models)}" if base_models else "download the model that it was made from"
        raise UserError(
            f"{repo_id} is quantized ({kind}), and weights in 16 or 32 bits are needed; {other}, which --quantize "
            "keeps in 4 or 8 bits where there is little memory. Its weights were not downloaded"
        )
    try:
        text = unwrapped(hf)[0]
        find_architecture(text, "its config.json")
        if text.keys() & set(_SIZES):
            config_from_hf(hf, repo_id.rpartition("/")[2], "its config.json")
    except UserError as e:
        raise UserError(f"{repo_id} cannot be converted, and its weights were not downloaded: {e}{_WAY_OUT}") from e


def _quantization_of(hf: dict[str, Any]) -> str | None:
    """Returns the quantization that config.json states, such as `gptq, 4 bits`; None if there is none."""
    settings = next((hf[key] for key in _QUANTIZED if hf.get(key)), None)
    if settings is None:
        return None
    if not isinstance(settings, dict):
        return str(settings)
    names = (settings.get(key) for key in ("quant_method", "quant_algo", "format"))
    kind = next((str(name) for name in names if name), "mlx" if hf.get("quantization") else "of an unnamed kind")
    flags = (n for n in (4, 8) if settings.get(f"load_in_{n}bit") or settings.get(f"_load_in_{n}bit"))
    bits = settings.get("bits") or settings.get("w_bit") or next(flags, None)
    return f"{kind}, {bits} bits" if isinstance(bits, int) else kind
