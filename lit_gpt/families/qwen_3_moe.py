"""Alibaba Qwen 3 as a mixture of experts (arXiv:2505.09388): 128 small experts per layer, eight per token."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, fused_experts, table
from lit_gpt.families.qwen_3 import QWEN_3
from lit_gpt.families.window import read_window, write_window


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with one window for all layers; experts' weights sum to one only if the file says so."""
    hf = {"norm_topk_prob": False, **hf}
    hf.pop("intermediate_size", None)  # the size of layers without experts, of which there are none
    hf.pop("max_window_layers", None)  # a key of Qwen 2 that this architecture ignores
    if "num_local_experts" in hf:  # the key that transformers 5 writes
        hf["num_experts"] = hf.pop("num_local_experts")
    if not hf.pop("use_sliding_window", False):
        hf["sliding_window"] = None
    return read_window(hf)


def _restore(config: Any) -> dict[str, Any]:
    return {**write_window(config), "use_sliding_window": config.sliding_window > 0}


_EXPERT = "model.layers.{}.mlp.experts.{}."
_QWEN_3_MOE = replace(
    QWEN_3,
    name="qwen3_moe",
    hf_class="Qwen3MoeForCausalLM",
    traits={**{k: v for k, v in QWEN_3.traits.items() if k != "head_size"}, "mlp": "moe"},
    config_keys={
        **{k: v for k, v in QWEN_3.config_keys.items() if k != "intermediate_size"},
        "moe_intermediate_size": "intermediate_size",
        "num_experts": "n_expert",
        "num_experts_per_tok": "n_expert_per_token",
    },
    config_values={
        "hidden_act": ("silu",),
        "norm_topk_prob": (True,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([], None),
    },
    weights={
        **{k: v for k, v in QWEN_3.weights.items() if ".mlp." not in k},
        "transformer.h.{}.mlp.gate": "model.layers.{}.mlp.gate",
        "transformer.h.{}.mlp.experts.{}.fc_1": _EXPERT + "gate_proj",
        "transformer.h.{}.mlp.experts.{}.fc_2": _EXPERT + "up_proj",
        "transformer.h.{}.mlp.experts.{}.proj": _EXPERT + "down_proj",
    },
    in_memory=fused_experts("model.layers.{}.mlp"),
    adapt=_adapt,
    restore=_restore,
)

_S30B, _S235B = (48, 32, 4, 2048, 768), (94, 64, 4, 4096, 1536)
_LONG = {"block_size": 262144, "rope_base": 10000000.0}
FAMILY = Family(
    org="Qwen",
    architecture=_QWEN_3_MOE,
    common={
        "vocab_size": 151669,
        "padded_vocab_size": 151936,
        "block_size": 40960,
        "norm_eps": 1e-6,
        "rope_base": 1000000.0,
        "head_size": 128,
        "n_expert": 128,
        "n_expert_per_token": 8,
    },
    models=table(
        "name n_layer n_head n_query_groups n_embd intermediate_size",
        ("Qwen3-30B-A3B", *_S30B),
        ("Qwen3-30B-A3B-Base", *_S30B, {"block_size": 32768}),
        ("Qwen3-30B-A3B-Instruct-2507", *_S30B, _LONG),
        ("Qwen3-30B-A3B-Thinking-2507", *_S30B, _LONG),
        ("Qwen3-235B-A22B", *_S235B),
    ),
)
