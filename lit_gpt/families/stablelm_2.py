"""Stability AI StableLM 3B, Zephyr, Stable Code 3B and StableLM 2 (arXiv:2402.17834)."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Architecture, Family, PerHead, table
from lit_gpt.families.llama import LLAMA


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with `qk_layernorm` by its value, and old key names replaced by today's."""
    hf = {{"norm_eps": "layer_norm_eps", "rope_pct": "partial_rotary_factor"}.get(k, k): v for k, v in hf.items()}
    hf.pop("num_heads", None)  # num_attention_heads again
    if "qk_layernorm" in hf:
        hf["qk_layernorm"] = "per_head" if hf["qk_layernorm"] else "none"
    return hf


_STABLELM: Architecture = replace(
    LLAMA,
    name="stablelm",
    hf_class="StableLmForCausalLM",
    other_classes=("StableLMEpochForCausalLM",),
    traits={**LLAMA.traits, "norm": "layer", "rotary_percentage": 0.25},
    config_keys={
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_query_groups",
        "hidden_size": "n_embd",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "block_size",
        "vocab_size": "padded_vocab_size",
        "layer_norm_eps": "norm_eps",
        "use_qkv_bias": "qkv_bias",
        "qk_layernorm": "qk_norm",
        "use_parallel_residual": ("parallel_residual", "shared_attention_norm"),
        "tie_word_embeddings": "tie_embeddings",
    },
    config_values={"hidden_act": ("silu",), "rotary_scaling_factor": (1.0,)},
    weights={
        **LLAMA.weights,
        "transformer.h.{}.attn.norm_q": PerHead("model.layers.{}.self_attn.q_layernorm.norms.{head}"),
        "transformer.h.{}.attn.norm_k": PerHead("model.layers.{}.self_attn.k_layernorm.norms.{head}", keys=True),
    },
    adapt=_adapt,
    restore=lambda config: {"qk_layernorm": config.qk_norm == "per_head"},
)

_V2 = {"vocab_size": 100289, "padded_vocab_size": 100352, "qkv_bias": True}
_V2_12B = {**_V2, "qkv_bias": False, "qk_norm": "per_head", "parallel_residual": True, "shared_attention_norm": True}
# fmt: off
FAMILY = Family(
    org="stabilityai",
    architecture=_STABLELM,
    common={"vocab_size": 50254, "padding_multiple": 64, "block_size": 4096},
    models=table(
        "name                   n_layer n_head n_query_groups n_embd intermediate_size",
        ("stablelm-3b-4e1t",         32,    32,            32,  2560,             6912),
        ("stablelm-zephyr-3b",       32,    32,            32,  2560,             6912),
        ("stable-code-3b",           32,    32,            32,  2560,             6912, {"block_size": 16384}),
        ("stablelm-2-1_6b",          24,    32,            32,  2048,             5632, _V2),
        ("stablelm-2-zephyr-1_6b",   24,    32,            32,  2048,             5632, _V2),
        ("stablelm-2-1_6b-chat",     24,    32,            32,  2048,             5632, _V2),
        ("stablelm-2-12b",           40,    32,             8,  5120,            13824, _V2_12B),
        ("stablelm-2-12b-chat",      40,    32,             8,  5120,            13824, _V2_12B),
    ),
)
# fmt: on
