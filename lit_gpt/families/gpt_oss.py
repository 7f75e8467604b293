"""OpenAI gpt-oss (arXiv:2508.10925): a mixture with biases and clamped activations, attention sinks, a window."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, Stacked, table
from lit_gpt.families.mistral import MISTRAL
from lit_gpt.families.window import read_window, write_layer_types


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with a window in the layers that `layer_types` marks, or else in every other one."""
    hf = {"sliding_window": 128, **hf}
    hf.pop("experts_per_token", None)  # num_experts_per_tok again
    hf.pop("initial_context_length", None)  # that of the rotary scaling again
    return read_window(hf, sliding_layers=list(range(0, hf.get("num_hidden_layers", 0), 2)))


_EXPERTS = "model.layers.{}.mlp.experts."
_GATE_UP = _EXPERTS + "gate_up_proj"
_GPT_OSS = replace(
    MISTRAL,
    name="gpt_oss",
    hf_class="GptOssForCausalLM",
    traits={
        **MISTRAL.traits,
        "mlp": "moe",
        "activation": "clamped_swiglu",
        "qkv_bias": True,
        "proj_bias": True,
        "mlp_bias": True,
        "router_bias": True,
        "attention_sinks": True,
        "sliding_window": 128,
        "head_size": 64,
        "rope_base": 150000.0,
    },
    config_keys={
        **MISTRAL.config_keys,
        "attention_bias": ("qkv_bias", "proj_bias"),
        "num_local_experts": "n_expert",
        "num_experts_per_tok": "n_expert_per_token",
    },
    config_values={"hidden_act": ("silu",), "swiglu_limit": (7.0,), "swiglu_alpha": (1.702,)},
    weights={
        **{k: v for k, v in MISTRAL.weights.items() if ".mlp." not in k},
        "transformer.h.{}.attn": "model.layers.{}.self_attn",
        "transformer.h.{}.mlp.gate": "model.layers.{}.mlp.router",
        "transformer.h.{}.mlp.experts.{}.fc_1": Stacked(_GATE_UP, "even", transposed=True),
        "transformer.h.{}.mlp.experts.{}.fc_2": Stacked(_GATE_UP, "odd", transposed=True),
        "transformer.h.{}.mlp.experts.{}.proj": Stacked(_EXPERTS + "down_proj", transposed=True),
    },
    adapt=_adapt,
    restore=write_layer_types,
)

_SCALING = {"type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
_SCALING |= {"original_max_position_embeddings": 4096}
# fmt: off
_SIZES = table(
    "name        n_layer n_head n_query_groups n_embd intermediate_size n_expert n_expert_per_token",
    ("gpt-oss-20b",   24,    64,             8,  2880,             2880,      32,                4),
    ("gpt-oss-120b",  36,    64,             8,  2880,             2880,     128,                4),
)
# fmt: on
FAMILY = Family(
    org="openai",
    architecture=_GPT_OSS,
    common={"vocab_size": 201088, "padded_vocab_size": 201088, "block_size": 131072, "rope_scaling": _SCALING},
    models=[row | {"sliding_layers": list(range(0, row["n_layer"], 2))} for row in _SIZES],
)
