"""Zhipu GLM-4.5 and 4.5-Air (arXiv:2508.06471): a mixture with sigmoids for scores, after layers with a single MLP."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, fused_experts, table
from lit_gpt.families.llama import LLAMA


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the layers that have a single MLP, and the width of the shared experts together."""
    hf = {"routed_scaling_factor": 1.0, "norm_topk_prob": True, "n_group": 1, "topk_group": 1, **hf}
    n_dense, n_shared = hf.pop("first_k_dense_replace", 1), hf.pop("n_shared_experts", 1)
    if "num_local_experts" in hf:  # the key that transformers 5 knows, too
        hf.setdefault("n_routed_experts", hf.pop("num_local_experts"))
    width = hf.get("moe_intermediate_size")
    hf["shared_expert_intermediate_size"] = (n_shared or 0) * width if isinstance(width, int) else width
    hf["dense_layers"] = list(range(min(n_dense or 0, hf.get("num_hidden_layers", 0)))) or None
    hf["qk_norm"] = "head" if hf.pop("use_qk_norm", False) else "none"
    hf.pop("num_nextn_predict_layers", None)  # layers that guess further tokens
    hf.pop("num_mtp_layers", None)
    return hf


def _restore(config: Any) -> dict[str, Any]:
    return {
        "first_k_dense_replace": len(config.dense_layers or ()),
        "n_shared_experts": config.shared_expert_size // config.intermediate_size,
        "use_qk_norm": config.qk_norm == "head",
        "shared_expert_intermediate_size": None,
        "qk_norm": None,
    }


_MLP = "model.layers.{}.mlp"
_EXPERT = f"{_MLP}.experts.{{}}."
_GLM_4_MOE = replace(
    LLAMA,
    name="glm4_moe",
    hf_class="Glm4MoeForCausalLM",
    other_classes=(),
    traits={
        **LLAMA.traits,
        "mlp": "moe",
        "router": "sigmoid",
        "router_choice_bias": True,
        "rotary_percentage": 0.5,
    },
    config_keys={
        **{k: v for k, v in LLAMA.config_keys.items() if k not in ("intermediate_size", "attention_bias", "mlp_bias")},
        "attention_bias": "qkv_bias",
        "moe_intermediate_size": "intermediate_size",
        "shared_expert_intermediate_size": "shared_expert_size",
        "intermediate_size": "dense_size",
        "dense_layers": "dense_layers",
        "n_routed_experts": "n_expert",
        "num_experts_per_tok": "n_expert_per_token",
        "routed_scaling_factor": "router_scale",
        "n_group": "router_groups",
        "topk_group": "router_groups_per_token",
        "qk_norm": "qk_norm",
    },
    config_values={"hidden_act": ("silu",), "norm_topk_prob": (True,)},
    other_types={"first_k_dense_replace": int, "n_shared_experts": int, "use_qk_norm": bool},
    weights={
        **LLAMA.weights,
        "transformer.h.{}.attn.norm_q": "model.layers.{}.self_attn.q_norm",
        "transformer.h.{}.attn.norm_k": "model.layers.{}.self_attn.k_norm",
        "transformer.h.{}.mlp": f"{_MLP}.gate",
        "transformer.h.{}.mlp.gate": f"{_MLP}.gate",
        "transformer.h.{}.mlp.experts.{}.fc_1": _EXPERT + "gate_proj",
        "transformer.h.{}.mlp.experts.{}.fc_2": _EXPERT + "up_proj",
        "transformer.h.{}.mlp.experts.{}.proj": _EXPERT + "down_proj",
        "transformer.h.{}.mlp.shared.fc_1": f"{_MLP}.shared_experts.gate_proj",
        "transformer.h.{}.mlp.shared.fc_2": f"{_MLP}.shared_experts.up_proj",
        "transformer.h.{}.mlp.shared.proj": f"{_MLP}.shared_experts.down_proj",
    },
    in_memory=fused_experts(_MLP),
    adapt=_adapt,
    restore=_restore,
)

# sizes as remembered, held to the number of parameters by tests/test_sizes_of_models.py
# fmt: off
FAMILY = Family(
    org="zai-org",
    architecture=_GLM_4_MOE,
    common={
        "vocab_size": 151552, "padded_vocab_size": 151552, "block_size": 131072, "rope_base": 1000000.0,
        "head_size": 128, "qkv_bias": True, "n_expert_per_token": 8,
    },
    models=table(
        "name       n_layer n_head n_query_groups n_embd intermediate_size n_expert dense_size shared_expert_size",
        ("GLM-4.5-Air",  46,    96,             8,  4096,             1408,     128,     10944,              1408,
            {"dense_layers": [0]}),
        ("GLM-4.5",      92,    96,             8,  5120,             1536,     160,     12288,              1536,
            {"dense_layers": [0, 1, 2], "qk_norm": "head", "router_scale": 2.5}),
    ),
)
# fmt: on
