"""Whether a model of the hub can be converted, by its config.json, before its weights are fetched."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError

_QUANTIZED = ("quantization_config", "quantization")
"""Keys of config.json by which transformers' quantized models and MLX's are known."""
_SIZES = ("hidden_size", "n_embd", "d_model")
"""Keys of which a config.json that describes a whole model has one."""
_WAY_OUT = "; docs/add_a_family.md says how to add a model, and --any_model true downloads this one all the same"


def check_supported(config_file: Path, repo_id: str, base_models: Sequence[str] = ()) -> None:
    """See that what is about to be downloaded can be converted.

    Args:
        config_file: the model's config.json.
        base_models: what its page says that it was made from.

    Raises:
        UserError: an architecture or a field of it that we do not compute, or weights in fewer bits than 16.
    """
    from lit_gpt.convert.configs import config_from_hf, find_architecture  # takes long to import

    try:
        hf = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError:
        return  # the conversion says what is wrong with it
    if not isinstance(hf, dict) or not hf.keys() & {"architectures", "model_type"}:
        return
    if kind := _quantization_of(hf):
        other = f"download {' or '.join(base_models)}" if base_models else "download the model that it was made from"
        raise UserError(
            f"{repo_id} is quantized ({kind}), and weights in 16 or 32 bits are needed; {other}, which --quantize "
            "keeps in 4 or 8 bits where there is little memory. Its weights were not downloaded"
        )
    try:
        find_architecture(hf, "its config.json")
        if hf.keys() & set(_SIZES):
            config_from_hf(hf, repo_id.rpartition("/")[2], "its config.json")
    except UserError as e:
        raise UserError(f"{repo_id} cannot be converted, and its weights were not downloaded: {e}{_WAY_OUT}") from e


def _quantization_of(hf: dict[str, Any]) -> str | None:
    """How config.json says that weights are quantized, such as `gptq, 4 bits`; None if they are not."""
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
