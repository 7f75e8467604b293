"""Microsoft Phi-1.5 and Phi-2 (arXiv:2309.05463)."""

from lit_gpt.families.family import Architecture, Family, Separate

_PHI = Architecture(
    name="phi",
    hf_class="PhiForCausalLM",
    traits={
        "norm": "layer",
        "mlp": "plain",
        "activation": "gelu_tanh",
        "parallel_residual": True,
        "shared_attention_norm": True,
        "qkv_bias": True,
        "proj_bias": True,
        "mlp_bias": True,
        "lm_head_bias": True,
        "rotary_percentage": 0.5,
    },
    config_keys={
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_query_groups",
        "hidden_size": "n_embd",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "block_size",
        "vocab_size": "padded_vocab_size",
        "layer_norm_eps": "norm_eps",
    },
    config_values={
        "hidden_act": ("gelu_new", "gelu_pytorch_tanh"),
        "qk_layernorm": (False,),
        "tie_word_embeddings": (False,),
    },
    weights={
        "transformer.wte": "model.embed_tokens",
        "transformer.h.{}.norm_1": "model.layers.{}.input_layernorm",
        "transformer.h.{}.attn.qkv": Separate("model.layers.{}.self_attn.{qkv}"),
        "transformer.h.{}.attn.proj": "model.layers.{}.self_attn.dense",
        "transformer.h.{}.mlp.fc": "model.layers.{}.mlp.fc1",
        "transformer.h.{}.mlp.proj": "model.layers.{}.mlp.fc2",
        "transformer.ln_f": "model.final_layernorm",
        "lm_head": "lm_head",
    },
    ignore=("rotary_emb.inv_freq",),
)

FAMILY = Family(
    org="microsoft",
    architecture=_PHI,
    common={"vocab_size": 50257, "padded_vocab_size": 51200, "n_head": 32, "block_size": 2048},
    models=[
        {"name": "phi-1_5", "n_layer": 24, "n_embd": 2048},
        {"name": "phi-2", "n_layer": 32, "n_embd": 2560, "rotary_percentage": 0.4},
    ],
)
