"""Z.ai GLM-4 0414 (https://github.com/zai-org/GLM-4): four norms, and half of each head rotates, in pairs."""

from dataclasses import replace

from lit_gpt.families.family import Family, Part, Separate, table
from lit_gpt.families.llama import LLAMA

_GATE_UP = "model.layers.{}.mlp.gate_up_proj"
_GLM_4 = replace(
    LLAMA,
    name="glm4",
    hf_class="Glm4ForCausalLM",
    other_classes=(),
    traits={**LLAMA.traits, "post_norm": True, "qkv_bias": True, "rotary_percentage": 0.5, "head_size": 128},
    config_keys={
        **{k: v for k, v in LLAMA.config_keys.items() if k not in ("attention_bias", "mlp_bias")},
        "attention_bias": "qkv_bias",
    },
    config_values={"hidden_act": ("silu",), "mlp_bias": (False,)},
    weights={
        **LLAMA.weights,
        "transformer.h.{}.attn.qkv": Separate("model.layers.{}.self_attn.{qkv}", pairs=True),
        "transformer.h.{}.post_attention_norm": "model.layers.{}.post_self_attn_layernorm",
        "transformer.h.{}.post_mlp_norm": "model.layers.{}.post_mlp_layernorm",
        "transformer.h.{}.mlp.fc_1": Part(_GATE_UP, 0),
        "transformer.h.{}.mlp.fc_2": Part(_GATE_UP, 1),
    },
)

# fmt: off
FAMILY = Family(
    org="zai-org",
    architecture=_GLM_4,
    common={"vocab_size": 151552, "padded_vocab_size": 151552, "block_size": 32768},
    models=table(
        "name               n_layer n_head n_query_groups n_embd intermediate_size",
        ("GLM-4-9B-0414",        40,    32,             2,  4096,            13696),
        ("GLM-4-32B-0414",       61,    48,             2,  6144,            23040, {"qkv_bias": False}),
    ),
)
# fmt: on
