"""Meta Llama 2 (arXiv:2307.09288), and the architecture that many models share."""

from lit_gpt.families.family import Architecture, Family, Separate, table, variants

LLAMA = Architecture(
    name="llama",
    hf_class="LlamaForCausalLM",
    traits={
        "norm": "rms",
        "mlp": "gated",
        "activation": "silu",
        "parallel_residual": False,
        "rotary_percentage": 1.0,
    },
    config_keys={
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_query_groups",
        "hidden_size": "n_embd",
        "head_dim": "head_size",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "block_size",
        "vocab_size": "padded_vocab_size",
        "rms_norm_eps": "norm_eps",
        "attention_bias": ("qkv_bias", "proj_bias"),
        "mlp_bias": "mlp_bias",
        "tie_word_embeddings": "tie_embeddings",
    },
    config_values={
        "hidden_act": ("silu",),
        "rope_interleaved": (False,),
    },
    weights={
        "transformer.wte": "model.embed_tokens",
        "transformer.h.{}.norm_1": "model.layers.{}.input_layernorm",
        "transformer.h.{}.attn.qkv": Separate("model.layers.{}.self_attn.{qkv}"),
        "transformer.h.{}.attn.proj": "model.layers.{}.self_attn.o_proj",
        "transformer.h.{}.norm_2": "model.layers.{}.post_attention_layernorm",
        "transformer.h.{}.mlp.fc_1": "model.layers.{}.mlp.gate_proj",
        "transformer.h.{}.mlp.fc_2": "model.layers.{}.mlp.up_proj",
        "transformer.h.{}.mlp.proj": "model.layers.{}.mlp.down_proj",
        "transformer.ln_f": "model.norm",
        "lm_head": "lm_head",
    },
    ignore=("rotary_emb.inv_freq",),
    other_classes=("LLaMAForCausalLM",),
)

# fmt: off
FAMILY = Family(
    org="meta-llama",
    architecture=LLAMA,
    common={"vocab_size": 32000, "padding_multiple": 64, "block_size": 4096},
    models=variants(
        table(
            "name         n_layer n_head n_query_groups n_embd intermediate_size",
            ("Llama-2-7b",     32,    32,            32,  4096,            11008),
            ("Llama-2-13b",    40,    40,            40,  5120,            13824),
            ("Llama-2-70b",    80,    64,             8,  8192,            28672),
        ),
        "{}-hf", "{}-chat-hf",
    ),
)
# fmt: on
