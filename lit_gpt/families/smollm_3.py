"""Hugging Face SmolLM3, https://huggingface.co/blog/smollm3: Llama, but every fourth layer has no rotary embedding."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.llama import LLAMA
from lit_gpt.families.window import read_window, write_layer_types


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the layers without rotation: as listed, or every n-th; only those get a window."""
    hf = dict(hf)
    rotated, interval = hf.pop("no_rope_layers", None), hf.pop("no_rope_layer_interval", None) or 4
    n = hf.get("num_hidden_layers", 0)
    hf["unrotated_layers"] = [i for i in range(n) if not (rotated[i] if rotated else (i + 1) % interval)] or None
    has_window = hf.pop("use_sliding_window", False) and hf.get("sliding_window")
    hf.pop("max_window_layers", None)  # a key of Qwen 2 that this architecture ignores
    return read_window(hf, sliding_layers=(hf["unrotated_layers"] or []) if has_window else [])


def _restore(config: Any) -> dict[str, Any]:
    return {
        **write_layer_types(config),
        "use_sliding_window": config.sliding_window > 0,
        "no_rope_layers": [int(config.rotation(i) != "none") for i in range(config.n_layer)],
    }


_SMOLLM_3 = replace(
    LLAMA,
    name="smollm3",
    hf_class="SmolLM3ForCausalLM",
    other_classes=(),
    traits={**LLAMA.traits, "tie_embeddings": True, "rope_base": 2000000.0},  # the default of transformers
    config_keys={
        **LLAMA.config_keys,
        "sliding_window": "sliding_window",
        "sliding_layers": "sliding_layers",
        "unrotated_layers": "unrotated_layers",
    },
    config_values={"hidden_act": ("silu",)},
    adapt=_adapt,
    restore=_restore,
)

# fmt: off
FAMILY = Family(
    org="HuggingFaceTB",
    architecture=_SMOLLM_3,
    common={
        "vocab_size": 128256, "padded_vocab_size": 128256, "block_size": 65536, "norm_eps": 1e-6,
        "rope_base": 5000000.0,
    },
    models=variants(
        table(
            "name        n_layer n_head n_query_groups n_embd intermediate_size unrotated_layers",
            ("SmolLM3-3B",   36,    16,             4,  2048,            11008, list(range(3, 36, 4))),
        ),
        "{}", "{}-Base",
    ),
)
# fmt: on
