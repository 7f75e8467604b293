"""NVIDIA Nemotron-H (arXiv:2504.03624): layers of Mamba-2, of attention, and of MLPs or mixtures, each by itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, Rule, Separate, Stacked, table, variants
from lit_gpt.families.granite_4 import NO_LIMIT
from lit_gpt.families.llama import LLAMA

_KINDS = {"M": "mamba2", "*": "attention", "-": "plain", "E": "moe"}
_TYPES = {"mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*", "mlp": "-", "moe": "E"}
_OTHER_KEYS = {
    "attention_head_dim": "head_dim",
    "mamba_n_groups": "n_groups",
    "mamba_d_conv": "conv_kernel",
    "mamba_conv_bias": "use_conv_bias",
    "mamba_dt_min": "time_step_min",
    "mamba_dt_limit": "time_step_limit",
    "num_local_experts": "n_routed_experts",
    "rms_norm_eps": "layer_norm_epsilon",
}
"""Key of some files -> key that most have."""
_UNREAD = """
    chunk_size mamba_chunk_size expand mamba_expand mamba_ssm_cache_dtype mtp_hybrid_override_pattern
    mtp_layers_block_type moe_shared_expert_overlap num_logits_to_keep num_nextn_predict_layers rescale_prenorm_residual
    residual_in_fp32 time_step_max mamba_dt_max time_step_floor mamba_dt_init_floor use_mamba_kernels
"""
"""Keys of first values of weights, of kernels, and of layers that guess further tokens."""
_OF_EXPERTS = {
    "n_routed_experts": "n_expert",
    "num_experts_per_tok": "n_expert_per_token",
    "moe_shared_expert_intermediate_size": "shared_expert_size",
    "moe_latent_size": "latent_size",
    "routed_scaling_factor": "router_scale",
    "n_group": "router_groups",
    "topk_group": "router_groups_per_token",
}
_ONE_WAY = {"norm_topk_prob": (True,), "n_shared_experts": (1,)}


def _layers(kinds: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of Config for what each layer is: M is Mamba-2, * attention, - an MLP, E a mixture."""
    found = [_KINDS.get(kind, kind) for kind in kinds]
    has_experts = "moe" in found
    return {
        "mixers": ["none" if kind in ("plain", "moe") else kind for kind in found],
        "mlp_layers": [i for i, kind in enumerate(found) if kind in ("plain", "moe")],
        "dense_layers": [i for i, kind in enumerate(found) if has_experts and kind == "plain"] or None,
        "unrotated_layers": list(range(len(found))),
        "mlp": "moe" if has_experts else "plain",
        "plain_experts": has_experts,
    }


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with what each layer is, and the widths of experts and of other MLPs apart."""
    hf = dict(hf)
    for other, key in _OTHER_KEYS.items():
        if (value := hf.pop(other, None)) is not None:
            hf.setdefault(key, value)
    pattern = hf.pop("hybrid_override_pattern", None)
    types = next((t for key in ("layers_block_type", "layer_types") if (t := hf.pop(key, None))), None)
    kinds = [_TYPES.get(t, t) for t in types or pattern or ""]
    layers = _layers(kinds)
    hf = {"num_hidden_layers": len(kinds), "time_step_min": 0.001, "use_conv_bias": True, "n_groups": 8, **hf}
    if layers["mlp"] == "moe":
        hf = {"norm_topk_prob": True, **hf}
        width = hf.pop("intermediate_size", 21504)
        hf |= {"dense_size": width} if layers["dense_layers"] else {}
        hf["intermediate_size"] = hf.pop("moe_intermediate_size", None)
    else:
        hf = {k: v for k, v in hf.items() if k not in (*_OF_EXPERTS, *_ONE_WAY, "moe_intermediate_size")}
    return {k: v for k, v in hf.items() if k not in _UNREAD.split()} | layers


def _restore(config: Any) -> dict[str, Any]:
    kinds = {kind: letter for letter, kind in _KINDS.items()}
    pairs = [(config.mixer(i), config.mlp_of(i)[0]) for i in range(config.n_layer)]
    found: dict[str, Any] = {"hybrid_override_pattern": "".join(kinds[m if m != "none" else mlp] for m, mlp in pairs)}
    if config.mlp == "moe":
        found |= {"moe_intermediate_size": config.intermediate_size, "moe_latent_size": config.latent_size or None}
        found["intermediate_size"] = config.dense_size or config.intermediate_size
    return found


def _names(model: str) -> dict[str, Rule]:
    """Returns our module -> theirs, where theirs are part of the module of this name."""
    layer = f"{model}.layers.{{}}"
    mixer = f"{layer}.mixer"
    return {
        "transformer.wte": f"{model}.embeddings",
        "transformer.h.{}.norm_1": f"{layer}.norm",
        "transformer.h.{}.norm_2": f"{layer}.norm",
        "transformer.h.{}.attn": mixer,
        "transformer.h.{}.attn.in_proj": f"{mixer}.in_proj",
        "transformer.h.{}.attn.conv": f"{mixer}.conv1d",
        "transformer.h.{}.attn.norm": f"{mixer}.norm",
        "transformer.h.{}.attn.out_proj": f"{mixer}.out_proj",
        "transformer.h.{}.attn.qkv": Separate(f"{mixer}.{{qkv}}"),
        "transformer.h.{}.attn.proj": f"{mixer}.o_proj",
        "transformer.h.{}.mlp": f"{mixer}.gate",
        "transformer.h.{}.mlp.fc": f"{mixer}.up_proj",
        "transformer.h.{}.mlp.proj": f"{mixer}.down_proj",
        "transformer.h.{}.mlp.gate": f"{mixer}.gate",
        "transformer.h.{}.mlp.latent_in": f"{mixer}.fc1_latent_proj",
        "transformer.h.{}.mlp.experts.{}.fc": f"{mixer}.experts.{{}}.up_proj",
        "transformer.h.{}.mlp.experts.{}.proj": f"{mixer}.experts.{{}}.down_proj",
        "transformer.h.{}.mlp.latent_out": f"{mixer}.fc2_latent_proj",
        "transformer.h.{}.mlp.shared.fc": f"{mixer}.shared_experts.up_proj",
        "transformer.h.{}.mlp.shared.proj": f"{mixer}.shared_experts.down_proj",
        "transformer.ln_f": f"{model}.norm_f",
        "lm_head": "lm_head",
    }


_KEYS = {k: v for k, v in LLAMA.config_keys.items() if k not in ("rms_norm_eps", "attention_bias", "mlp_bias")}
_NEMOTRON_H = replace(
    LLAMA,
    name="nemotron_h",
    hf_class="NemotronHForCausalLM",
    other_classes=(),
    traits={
        **LLAMA.traits,
        "mlp": "plain",
        "activation": "relu2",
        "router": "sigmoid",
        "router_choice_bias": True,
        "conv_size": 4,
    },
    config_keys={
        **_KEYS,
        **_OF_EXPERTS,
        "layer_norm_epsilon": "norm_eps",
        "mamba_num_heads": "ssm_heads",
        "mamba_head_dim": "ssm_head_size",
        "ssm_state_size": "ssm_state_size",
        "n_groups": "ssm_groups",
        "time_step_min": "ssm_min_step",
        "conv_kernel": "conv_size",
        "use_conv_bias": "conv_bias",
        "dense_size": "dense_size",
        **{key: key for key in _layers("")},
    },
    config_values={
        "mlp_hidden_act": ("relu2",),
        "mamba_hidden_act": ("silu",),
        "time_step_limit": NO_LIMIT,
        **dict.fromkeys(("attention_bias", "mlp_bias", "use_bias", "mamba_proj_bias"), (False,)),
        **_ONE_WAY,
    },
    other_types={"hybrid_override_pattern": str, "moe_intermediate_size": int},
    weights=_names("backbone"),
    in_memory={
        **_names("model"),
        "transformer.h.{}.mlp.experts.{}.fc": Stacked("model.layers.{}.mixer.experts.up_proj"),
        "transformer.h.{}.mlp.experts.{}.proj": Stacked("model.layers.{}.mixer.experts.down_proj"),
    },
    not_in_peft=("out_proj",),  # fused kernels of Mamba-2 read its weight and not what it returns
    adapt=_adapt,
    restore=_restore,
)

_8B = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
_9B = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
_12B = "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-"
_30B = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
_A3B = {"n_expert": 128, "n_expert_per_token": 6, "shared_expert_size": 3712, "router_scale": 2.5}
_SIZES = "name n_layer n_head n_query_groups n_embd intermediate_size ssm_heads ssm_head_size block_size"
# sizes as remembered, held to the number of parameters by tests/test_sizes_of_models.py
# fmt: off
FAMILY = Family(
    org="nvidia",
    architecture=_NEMOTRON_H,
    common={
        "vocab_size": 131072, "padded_vocab_size": 131072, "head_size": 128, "conv_bias": True,
        "ssm_state_size": 128, "ssm_groups": 8, "ssm_min_step": 0.001,
    },
    models=[
        *table(_SIZES, ("Nemotron-H-8B-Base-8K", 52, 32, 8, 4096, 21504, 128, 64, 8192, _layers(_8B))),
        *variants(
            table(
                _SIZES,
                ("NVIDIA-Nemotron-Nano-9B-v2",  56, 40, 8, 4480, 15680, 128, 80, 131072, _layers(_9B)),
                ("NVIDIA-Nemotron-Nano-12B-v2", 62, 40, 8, 5120, 20480, 128, 80, 131072, _layers(_12B)),
            ),
            "{}", "{}-Base",
        ),
        *variants(
            table(
                _SIZES,
                ("NVIDIA-Nemotron-3-Nano-30B-A3B", 52, 32, 2, 2688, 1856, 64, 64, 262144, _layers(_30B) | _A3B),
            ),
            "{}-BF16", "{}-Base-BF16",
        ),
    ],
)
# fmt: on
