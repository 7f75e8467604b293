"""Mistral AI Ministral 3 (https://mistral.ai/news/mistral-3): Llama with YaRN, up to the length before its scaling.

From position 16,384 on, transformers also multiplies queries by a factor that grows with the position. We stop there:
up to that length the factor is one, and both compute the same.
"""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.mistral import MISTRAL
from lit_gpt.families.window import read_window, write_window

_ROPE = {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384}
_ROPE |= {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the length up to which queries are not scaled by their position."""
    hf = read_window({"sliding_window": None, **hf})
    key = "rope_scaling" if hf.get("rope_scaling") and not hf.get("rope_parameters") else "rope_parameters"
    stated = hf.get(key) or _ROPE
    if not isinstance(stated, dict):
        return hf
    rope = {k: v for k, v in stated.items() if k not in ("llama_4_scaling_beta", "max_position_embeddings")}
    original = rope.get("original_max_position_embeddings")
    if stated.get("llama_4_scaling_beta") and isinstance(original, int) and hf.get("max_position_embeddings"):
        hf["max_position_embeddings"] = min(hf["max_position_embeddings"], original)
    return {**hf, key: rope}


def _restore(config: Any) -> dict[str, Any]:
    """Returns the rotary settings with the factor of late queries, and the whole length."""
    scaling = {k: v for k, v in (config.rope_scaling or {}).items() if k != "type"}
    if not scaling:
        return write_window(config)
    length = int(scaling["factor"] * scaling.get("original_max_position_embeddings", config.block_size))
    rope = {"rope_type": "yarn", "type": "yarn", "rope_theta": config.rope_base, **scaling, "llama_4_scaling_beta": 0.1}
    return {**write_window(config), "rope_scaling": None, "rope_parameters": rope, "max_position_embeddings": length}


_MINISTRAL_3 = replace(
    MISTRAL,
    name="ministral3",
    hf_class="Ministral3ForCausalLM",
    traits={**MISTRAL.traits, "sliding_window": 0, "head_size": 128},
    adapt=_adapt,
    restore=_restore,
)

_SCALING = {"type": "yarn"} | {
    k: v for k, v in _ROPE.items() if k not in ("rope_type", "rope_theta", "llama_4_scaling_beta")
}
# fmt: off
FAMILY = Family(
    org="mistralai",
    architecture=_MINISTRAL_3,
    common={
        "vocab_size": 131072, "padded_vocab_size": 131072, "block_size": 16384, "rope_base": 1000000.0,
        "rope_scaling": _SCALING, "wrapper": "Mistral3ForConditionalGeneration",
    },
    models=variants(
        table(
            "name          n_layer n_head n_query_groups n_embd intermediate_size",
            ("Ministral-3-3B",  26,    32,             8,  3072,             9216, {"tie_embeddings": True}),
            ("Ministral-3-8B",  34,    32,             8,  4096,            14336),
            ("Ministral-3-14B", 40,    32,             8,  5120,            16384),
        ),
        "{}-Base-2512", "{}-Instruct-2512-BF16", "{}-Reasoning-2512",
    ),
)
# fmt: on
