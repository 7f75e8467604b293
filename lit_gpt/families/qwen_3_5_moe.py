"""Alibaba Qwen 3.5 as mixtures of experts (https://github.com/QwenLM/Qwen3.5), with a gated shared expert."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, fused_experts, table
from lit_gpt.families.qwen_3_5 import QWEN_3_5, read_mixers
from lit_gpt.families.qwen_3_next import MIXTURE, MIXTURE_KEYS


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the layers' kinds, without the width of layers that have no experts: there are none."""
    return {k: v for k, v in read_mixers(hf).items() if k != "intermediate_size"}


_QWEN_3_5_MOE = replace(
    QWEN_3_5,
    name="qwen3_5_moe",
    model_type="qwen3_5_moe_text",
    hf_class="Qwen3_5MoeForCausalLM",
    traits={**QWEN_3_5.traits, "mlp": "moe", "shared_expert_gate": True},
    config_keys={**{k: v for k, v in QWEN_3_5.config_keys.items() if k != "intermediate_size"}, **MIXTURE_KEYS},
    weights={**{k: v for k, v in QWEN_3_5.weights.items() if ".mlp." not in k}, **MIXTURE},
    adapt=_adapt,
    in_memory=fused_experts("model.layers.{}.mlp"),
)

# sizes as remembered, held to the number of parameters by tests/test_sizes_of_models.py
# fmt: off
FAMILY = Family(
    org="Qwen",
    architecture=_QWEN_3_5_MOE,
    common={
        "vocab_size": 248320, "padded_vocab_size": 248320, "block_size": 262144, "norm_eps": 1e-6,
        "rope_base": 10000000.0, "wrapper": "Qwen3_5MoeForConditionalGeneration", "shared_expert_size": 512,
        "delta_key_heads": 16, "delta_value_heads": 32, "delta_key_size": 128, "delta_value_size": 128,
    },
    models=table(
        "name            n_layer n_head n_query_groups n_embd intermediate_size n_expert n_expert_per_token",
        ("Qwen3.5-35B-A3B",  40,    16,             2,  2048,              512,     256,                8,
            {"mixers": ["attention" if (i + 1) % 4 == 0 else "delta" for i in range(40)]}),
    ),
)
# fmt: on
