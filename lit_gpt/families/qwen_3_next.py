"""Alibaba Qwen 3 Next (https://qwenlm.github.io): the layers of Qwen 3.5 with 512 small experts and a shared one."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, KeyHeads, Rule, fused_experts, table
from lit_gpt.families.qwen_3_5 import QWEN_3_5, read_mixers, write_mixers


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the layers' kinds, and with those that have a single MLP."""
    hf = {"norm_topk_prob": True, **read_mixers(hf)}
    step, alone = hf.pop("decoder_sparse_step", None) or 1, hf.pop("mlp_only_layers", None) or []
    n = hf.get("num_hidden_layers", 0)
    hf["dense_layers"] = [i for i in range(n) if i in alone or (i + 1) % step] or None
    return hf


def _restore(config: Any) -> dict[str, Any]:
    return {**write_mixers(config), "mlp_only_layers": config.dense_layers or [], "decoder_sparse_step": 1}


_MLP = "model.layers.{}.mlp"
_EXPERT = f"{_MLP}.experts.{{}}."
MIXTURE: dict[str, Rule] = {
    "transformer.h.{}.mlp.gate": f"{_MLP}.gate",
    "transformer.h.{}.mlp.experts.{}.fc_1": _EXPERT + "gate_proj",
    "transformer.h.{}.mlp.experts.{}.fc_2": _EXPERT + "up_proj",
    "transformer.h.{}.mlp.experts.{}.proj": _EXPERT + "down_proj",
    "transformer.h.{}.mlp.shared.fc_1": f"{_MLP}.shared_expert.gate_proj",
    "transformer.h.{}.mlp.shared.fc_2": f"{_MLP}.shared_expert.up_proj",
    "transformer.h.{}.mlp.shared.proj": f"{_MLP}.shared_expert.down_proj",
    "transformer.h.{}.mlp.shared_gate": f"{_MLP}.shared_expert_gate",
}
"""The weights of a mixture with a shared expert."""
MIXTURE_KEYS: dict[str, str | tuple[str, ...]] = {
    "moe_intermediate_size": "intermediate_size",
    "num_experts": "n_expert",
    "num_experts_per_tok": "n_expert_per_token",
    "shared_expert_intermediate_size": "shared_expert_size",
}
_QKVZ, _BA = (f"model.layers.{{}}.linear_attn.in_proj_{x}" for x in ("qkvz", "ba"))
_QWEN_3_NEXT = replace(
    QWEN_3_5,
    name="qwen3_next",
    model_type="",
    hf_class="Qwen3NextForCausalLM",
    traits={**QWEN_3_5.traits, "mlp": "moe", "shared_expert_gate": True},
    config_keys={
        **{k: v for k, v in QWEN_3_5.config_keys.items() if k != "intermediate_size"},
        **MIXTURE_KEYS,
        "intermediate_size": "dense_size",
        "dense_layers": "dense_layers",
    },
    config_values={"hidden_act": ("silu",), "norm_topk_prob": (True,)},
    weights={
        **QWEN_3_5.weights,
        **MIXTURE,
        "transformer.h.{}.attn.in_qkv": KeyHeads(_QKVZ, "qkv", ("qkv", "z")),
        "transformer.h.{}.attn.in_z": KeyHeads(_QKVZ, "z", ("qkv", "z")),
        "transformer.h.{}.attn.in_b": KeyHeads(_BA, "b", ("b", "a")),
        "transformer.h.{}.attn.in_a": KeyHeads(_BA, "a", ("b", "a")),
    },
    in_memory=fused_experts(_MLP),
    other_types={"mlp_only_layers": list[int] | None, "decoder_sparse_step": int},
    adapt=_adapt,
    restore=_restore,
)

_DELTA = {"delta_key_heads": 16, "delta_value_heads": 32, "delta_key_size": 128, "delta_value_size": 128}
# fmt: off
# sizes as remembered, held to the number of parameters by tests/test_sizes_of_models.py
_SIZES = table(
    "name              n_layer n_head n_query_groups n_embd intermediate_size n_expert n_expert_per_token",
    ("Qwen3-Next-80B-A3B-Instruct", 48, 16,        2,  2048,              512,     512,                10),
    ("Qwen3-Next-80B-A3B-Thinking", 48, 16,        2,  2048,              512,     512,                10),
)
# fmt: on
FAMILY = Family(
    org="Qwen",
    architecture=_QWEN_3_NEXT,
    common={
        **_DELTA,
        "vocab_size": 151669,
        "padded_vocab_size": 151936,
        "block_size": 262144,
        "norm_eps": 1e-6,
        "rope_base": 10000000.0,
        "shared_expert_size": 512,
        "dense_size": 5120,
        "mixers": ["attention" if (i + 1) % 4 == 0 else "delta" for i in range(48)],
    },
    models=_SIZES,
)
