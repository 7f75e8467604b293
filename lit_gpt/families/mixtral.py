"""Mixtral 8x7B and 8x22B (arXiv:2401.04088): Mistral with eight experts per layer, two per token."""

from dataclasses import replace

from lit_gpt.families.family import Family, fused_experts, table, variants
from lit_gpt.families.mistral import MISTRAL

_EXPERT = "model.layers.{}.block_sparse_moe.experts.{}."
_MIXTRAL = replace(
    MISTRAL,
    name="mixtral",
    hf_class="MixtralForCausalLM",
    traits={**MISTRAL.traits, "mlp": "moe", "sliding_window": 0, "rope_base": 1000000.0},
    config_keys={
        **MISTRAL.config_keys,
        "num_local_experts": "n_expert",
        "num_experts_per_tok": "n_expert_per_token",
    },
    weights={
        **{k: v for k, v in MISTRAL.weights.items() if ".mlp." not in k},
        "transformer.h.{}.mlp.gate": "model.layers.{}.block_sparse_moe.gate",
        "transformer.h.{}.mlp.experts.{}.fc_1": _EXPERT + "w1",
        "transformer.h.{}.mlp.experts.{}.fc_2": _EXPERT + "w3",
        "transformer.h.{}.mlp.experts.{}.proj": _EXPERT + "w2",
    },
    in_memory=fused_experts("model.layers.{}.mlp"),
)

# fmt: off
_SIZES = table(
    "name           n_layer n_head n_query_groups n_embd intermediate_size block_size",
    ("Mixtral-8x7B",     32,    32,             8,  4096,            14336,     32768),
    ("Mixtral-8x22B",    56,    48,             8,  6144,            16384,     65536),
)
# fmt: on
FAMILY = Family(
    org="mistralai",
    architecture=_MIXTRAL,
    common={"vocab_size": 32000, "padding_multiple": 64, "n_expert": 8, "n_expert_per_token": 2},
    models=variants(_SIZES, "{}-v0.1", "{}-Instruct-v0.1"),
)
