"""IBM Granite 4 (https://www.ibm.com/granite): Granite 3's multipliers, Mamba-2 in most layers, perhaps experts."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, Part, Stacked, fused_experts, table
from lit_gpt.families.granite import GRANITE, read_multipliers, write_multipliers

_KINDS = {"mamba": "mamba2", "linear_attention": "mamba2", "attention": "attention", "full_attention": "attention"}


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the layers' kinds, whether there are experts, and which layers rotate."""
    hf = {"num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 1024, **read_multipliers(hf)}
    hf = {"mamba_n_groups": 1, "mamba_d_state": 256, "mamba_n_heads": 128, "mamba_conv_bias": True, **hf}
    n = hf.get("num_hidden_layers", 0)
    types = [hf.pop(key, None) for key in ("layer_types", "layers_block_type")]
    kinds = next((t for t in types if t), ["mamba"] * n)
    hf["mixers"] = [_KINDS.get(kind, kind) for kind in kinds]
    if hf.pop("position_embedding_type", None) != "rope":
        hf["unrotated_layers"] = list(range(n))
    if not hf["num_local_experts"]:
        hf |= {"mlp": "gated", "intermediate_size": hf.pop("shared_intermediate_size")}
        hf = {k: v for k, v in hf.items() if k not in ("num_local_experts", "num_experts_per_tok")}
    if hf.get("mamba_d_head", "auto") == "auto":  # as many channels as make the width
        width, heads = int((hf.get("mamba_expand") or 2) * hf.get("hidden_size", 0)), hf["mamba_n_heads"]
        hf["mamba_d_head"] = width // heads if heads else 0
    return {k: v for k, v in hf.items() if k not in ("mamba_expand", "mamba_chunk_size", "logits_to_keep")}


def _restore(config: Any) -> dict[str, Any]:
    has_experts = config.mlp == "moe"
    return {
        **write_multipliers(config),
        "layer_types": ["linear_attention" if config.mixer(i) == "mamba2" else "full_attention"
                        for i in range(config.n_layer)],
        "position_embedding_type": None if config.unrotated_layers else "rope",
        "num_local_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        "shared_intermediate_size": config.shared_expert_size if has_experts else config.intermediate_size,
        "mamba_expand": config.ssm_sizes[0] // config.n_embd,
        "mlp": None,
    }  # fmt: skip


_MAMBA, _SHARED = "model.layers.{}.mamba", "model.layers.{}.shared_mlp"
_EXPERTS = "model.layers.{}.block_sparse_moe"
_IN, _OUT = f"{_EXPERTS}.input_linear.weight", f"{_EXPERTS}.output_linear.weight"
NO_LIMIT = ([0.0, {"__float__": "Infinity"}], [0.0, float("inf")], (0.0, float("inf")), None)
_GRANITE_4 = replace(
    GRANITE,
    name="granitemoehybrid",
    hf_class="GraniteMoeHybridForCausalLM",
    traits={**GRANITE.traits, "mlp": "moe", "conv_size": 4},
    config_keys={
        **{k: v for k, v in GRANITE.config_keys.items() if k != "mlp_bias"},
        "num_local_experts": "n_expert",
        "num_experts_per_tok": "n_expert_per_token",
        "shared_intermediate_size": "shared_expert_size",
        "mamba_n_heads": "ssm_heads",
        "mamba_d_head": "ssm_head_size",
        "mamba_d_state": "ssm_state_size",
        "mamba_n_groups": "ssm_groups",
        "mamba_d_conv": "conv_size",
        "mamba_conv_bias": "conv_bias",
        "mixers": "mixers",
        "unrotated_layers": "unrotated_layers",
        "mlp": "mlp",
    },
    config_values={"hidden_act": ("silu",), "mamba_proj_bias": (False,), "time_step_limit": NO_LIMIT}
    | {"normalization_function": ("rmsnorm",)},
    other_types={"mamba_d_head": Any, "mamba_expand": float, "num_local_experts": int | None},
    weights={
        **GRANITE.weights,
        "transformer.h.{}.attn": _MAMBA,
        "transformer.h.{}.attn.in_proj": f"{_MAMBA}.in_proj",
        "transformer.h.{}.attn.conv": f"{_MAMBA}.conv1d",
        "transformer.h.{}.attn.norm": f"{_MAMBA}.norm",
        "transformer.h.{}.attn.out_proj": f"{_MAMBA}.out_proj",
        "transformer.h.{}.mlp.fc_1": Part(f"{_SHARED}.input_linear", 0),
        "transformer.h.{}.mlp.fc_2": Part(f"{_SHARED}.input_linear", 1),
        "transformer.h.{}.mlp.proj": f"{_SHARED}.output_linear",
        "transformer.h.{}.mlp.shared.fc_1": Part(f"{_SHARED}.input_linear", 0),
        "transformer.h.{}.mlp.shared.fc_2": Part(f"{_SHARED}.input_linear", 1),
        "transformer.h.{}.mlp.shared.proj": f"{_SHARED}.output_linear",
        "transformer.h.{}.mlp.gate": f"{_EXPERTS}.router.layer",
        "transformer.h.{}.mlp.experts.{}.fc_1": Stacked(_IN, "first half"),
        "transformer.h.{}.mlp.experts.{}.fc_2": Stacked(_IN, "second half"),
        "transformer.h.{}.mlp.experts.{}.proj": Stacked(_OUT),
    },
    in_memory=fused_experts(_EXPERTS, "router"),
    adapt=_adapt,
    restore=_restore,
)

# sizes as remembered, held to the number of parameters by tests/test_sizes_of_models.py
_1B = {"embedding_factor": 12.0, "residual_factor": 0.22, "logit_divisor": 6.0, "query_pre_attn_scalar": 128.0**2}
# fmt: off
FAMILY = Family(
    org="ibm-granite",
    architecture=_GRANITE_4,
    common={
        "vocab_size": 100352, "padded_vocab_size": 100352, "block_size": 131072, "rope_base": 10000.0,
        "conv_bias": True, "tie_embeddings": True,
        "ssm_head_size": 64, "ssm_state_size": 128,
    },
    models=table(
        "name                n_layer n_head n_query_groups n_embd intermediate_size ssm_heads",
        ("granite-4.0-h-1b",      40,    12,             4,  1536,             4096,       48,
            {**_1B, "mlp": "gated", "unrotated_layers": list(range(40)),
             "mixers": ["attention" if i in (5, 15, 25, 35) else "mamba2" for i in range(40)]}),
    ),
)
# fmt: on
