"""Swiss AI Apertus (arXiv:2509.14233): the activation xIELU, and a norm on each head's queries and keys."""

from dataclasses import replace

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.llama import LLAMA

_SCALED = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_SCALED |= {"original_max_position_embeddings": 8192}
_APERTUS = replace(
    LLAMA,
    name="apertus",
    hf_class="ApertusForCausalLM",
    other_classes=(),
    traits={**LLAMA.traits, "mlp": "plain", "activation": "xielu", "qk_norm": "head", "rope_base": 12000000.0},
    config_keys={k: v for k, v in LLAMA.config_keys.items() if k not in ("head_dim", "mlp_bias")},
    config_values={"hidden_act": ("xielu",), "qk_norm": (True,), "post_norm": (False,), "mlp_bias": (False,)},
    weights={
        **{k: v for k, v in LLAMA.weights.items() if ".mlp." not in k},
        "transformer.h.{}.norm_1": "model.layers.{}.attention_layernorm",
        "transformer.h.{}.norm_2": "model.layers.{}.feedforward_layernorm",
        "transformer.h.{}.attn.norm_q": "model.layers.{}.self_attn.q_norm",
        "transformer.h.{}.attn.norm_k": "model.layers.{}.self_attn.k_norm",
        "transformer.h.{}.mlp.fc": "model.layers.{}.mlp.up_proj",
        "transformer.h.{}.mlp.activation": "model.layers.{}.mlp.act_fn",
        "transformer.h.{}.mlp.proj": "model.layers.{}.mlp.down_proj",
    },
)

# fmt: off
FAMILY = Family(
    org="swiss-ai",
    architecture=_APERTUS,
    common={
        "vocab_size": 131072, "padded_vocab_size": 131072, "block_size": 65536, "rope_scaling": _SCALED,
    },
    models=variants(
        table(
            "name        n_layer n_head n_query_groups n_embd intermediate_size",
            ("Apertus-8B",    32,    32,             8,  4096,            21504),
            ("Apertus-70B",   80,    64,             8,  8192,            43008),
        ),
        "{}-2509", "{}-Instruct-2509",
    ),
)
# fmt: on
