"""Alibaba Qwen 3 (arXiv:2505.09388): a norm on each head's queries and keys, no biases."""

from dataclasses import replace

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.qwen_2 import QWEN_2

QWEN_3 = replace(
    QWEN_2,
    name="qwen3",
    hf_class="Qwen3ForCausalLM",
    traits={**QWEN_2.traits, "qkv_bias": False, "qk_norm": "head", "head_size": 128},
    config_keys={**QWEN_2.config_keys, "head_dim": "head_size", "attention_bias": ("qkv_bias", "proj_bias")},
    config_values={"hidden_act": ("silu",), "use_mrope": (False,)},
    weights={
        **QWEN_2.weights,
        "transformer.h.{}.attn.norm_q": "model.layers.{}.self_attn.q_norm",
        "transformer.h.{}.attn.norm_k": "model.layers.{}.self_attn.k_norm",
    },
)

_TIED = {"tie_embeddings": True}
# fmt: off
_SIZES = table(
    "name       n_layer n_head n_query_groups n_embd intermediate_size",
    ("Qwen3-0.6B",   28,    16,             8,  1024,             3072, _TIED),
    ("Qwen3-1.7B",   28,    16,             8,  2048,             6144, _TIED),
    ("Qwen3-4B",     36,    32,             8,  2560,             9728, _TIED),
    ("Qwen3-8B",     36,    32,             8,  4096,            12288),
    ("Qwen3-14B",    40,    40,             8,  5120,            17408),
    ("Qwen3-32B",    64,    64,             8,  5120,            25600),
)
# fmt: on
_LONG = {"block_size": 262144, "rope_base": 5000000.0}
_2507 = [row | _LONG for row in variants(_SIZES[2:3], "{}-Instruct-2507", "{}-Thinking-2507")]
FAMILY = Family(
    org="Qwen",
    architecture=QWEN_3,
    common={
        "vocab_size": 151669,
        "padded_vocab_size": 151936,
        "block_size": 40960,
        "norm_eps": 1e-6,
        "rope_base": 1000000.0,
    },
    models=variants(_SIZES[:5], "{}", "{}-Base") + _SIZES[5:] + _2507,
)
