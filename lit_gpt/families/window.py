"""How Hugging Face's config.json states a sliding window, and how it is written back."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_gpt.config import Config


def read_window(hf: dict[str, Any], sliding_layers: list[int] | None = None) -> dict[str, Any]:
    """Returns config.json with `sliding_window` and `sliding_layers` as our Config has them.

    Args:
        sliding_layers: the architecture's layers with a window where the file does not list `layer_types`; None means
            all of them.
    """
    hf = dict(hf)
    types = hf.pop("layer_types", None)
    if types is not None:
        sliding_layers = [i for i, kind in enumerate(types) if kind == "sliding_attention"]
    if "sliding_window" in hf:
        hf["sliding_window"] = hf["sliding_window"] or 0  # null means no window
    if sliding_layers is not None:
        if not sliding_layers:
            hf["sliding_window"] = 0
        elif len(sliding_layers) < hf.get("num_hidden_layers", 0):
            hf["sliding_layers"] = sliding_layers
    return hf


def write_window(config: "Config") -> dict[str, Any]:
    """Returns `sliding_window` for config.json; null if there is none."""
    return {"sliding_window": config.sliding_window or None}


def write_layer_types(config: "Config") -> dict[str, Any]:
    """Returns `sliding_window` and `layer_types` for config.json."""
    kinds = ["sliding_attention" if config.is_sliding(i) else "full_attention" for i in range(config.n_layer)]
    return {**write_window(config), "layer_types": kinds}
