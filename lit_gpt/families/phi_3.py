"""Microsoft Phi-3 and Phi-4 (arXiv:2404.14219, arXiv:2412.08905)."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, Part, table
from lit_gpt.families.llama import LLAMA
from lit_gpt.families.mistral import MISTRAL
from lit_gpt.families.window import read_window, write_window

_NEUTRAL = (("full_attn_mod", 1), ("interpolate_factor", 1), ("lm_head_bias", False), ("mlp_bias", False))
"""Keys of Phi-4-mini's config.json with values that change nothing."""


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the length before LongRoPE moved to the other parameters of the scaling."""
    hf = read_window(hf)
    hf = {key: value for key, value in hf.items() if (key, value) not in _NEUTRAL}
    original = hf.pop("original_max_position_embeddings", None)
    for key in ("rope_scaling", "rope_parameters"):
        if hf.get(key) and original:
            hf[key] = {"original_max_position_embeddings": original, **hf[key]}
    return hf


def _restore(config: Any) -> dict[str, Any]:
    scaling = config.rope_scaling or {}
    original = scaling.get("original_max_position_embeddings", config.block_size)
    return {**write_window(config), "original_max_position_embeddings": original}


_GATE_UP = "model.layers.{}.mlp.gate_up_proj"
_PHI_3 = replace(
    MISTRAL,
    name="phi3",
    hf_class="Phi3ForCausalLM",
    traits={**LLAMA.traits, "sliding_window": 0},
    config_keys={k: v for k, v in MISTRAL.config_keys.items() if k != "head_dim"},
    weights={
        **LLAMA.weights,
        "transformer.h.{}.attn.qkv": "model.layers.{}.self_attn.qkv_proj",
        "transformer.h.{}.mlp.fc_1": Part(_GATE_UP, 0),
        "transformer.h.{}.mlp.fc_2": Part(_GATE_UP, 1),
    },
    adapt=_adapt,
    restore=_restore,
)

_WINDOW = {"sliding_window": 2047}
_PHI_4 = {"vocab_size": 100352, "rope_base": 250000.0, "block_size": 16384}
# fmt: off
FAMILY = Family(
    org="microsoft",
    architecture=_PHI_3,
    common={"vocab_size": 32064, "padding_multiple": 64, "block_size": 4096},
    models=table(
        "name                       n_layer n_head n_query_groups n_embd intermediate_size",
        ("Phi-3-mini-4k-instruct",       32,    32,            32,  3072,             8192, _WINDOW),
        ("Phi-3-medium-4k-instruct",     40,    40,            10,  5120,            17920, _WINDOW),
        ("phi-4",                        40,    40,            10,  5120,            17920, _PHI_4),
    ),
)
# fmt: on
