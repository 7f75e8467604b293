"""Ai2 OLMo 2 (arXiv:2501.00656): norms after attention and MLP rather than before, and on queries and keys."""

from dataclasses import replace

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.llama import LLAMA

OLMO_2 = replace(
    LLAMA,
    name="olmo2",
    hf_class="Olmo2ForCausalLM",
    other_classes=(),
    traits={**LLAMA.traits, "pre_norm": False, "post_norm": True, "qk_norm": "full"},
    config_keys={k: v for k, v in LLAMA.config_keys.items() if k not in ("head_dim", "mlp_bias")},
    config_values={"hidden_act": ("silu",)},
    weights={
        **{k: v for k, v in LLAMA.weights.items() if ".norm_" not in k},
        "transformer.h.{}.attn.norm_q": "model.layers.{}.self_attn.q_norm",
        "transformer.h.{}.attn.norm_k": "model.layers.{}.self_attn.k_norm",
        "transformer.h.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
        "transformer.h.{}.post_mlp_norm": "model.layers.{}.post_feedforward_layernorm",
    },
)

# fmt: off
FAMILY = Family(
    org="allenai",
    architecture=OLMO_2,
    common={
        "vocab_size": 100278, "padded_vocab_size": 100352, "block_size": 4096, "norm_eps": 1e-6, "rope_base": 500000.0,
    },
    models=variants(
        table(
            "name              n_layer n_head n_query_groups n_embd intermediate_size",
            ("OLMo-2-0425-1B",      16,    16,            16,  2048,             8192),
            ("OLMo-2-1124-7B",      32,    32,            32,  4096,            11008),
            ("OLMo-2-1124-13B",     40,    40,            40,  5120,            13824),
            ("OLMo-2-0325-32B",     64,    40,             8,  5120,            27648),
        ),
        "{}", "{}-Instruct",
    ),
)
# fmt: on
