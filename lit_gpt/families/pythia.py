"""EleutherAI Pythia (arXiv:2304.01373), and the GPT-NeoX architecture (arXiv:2204.06745) that it shares."""

from lit_gpt.families.family import Architecture, Family, Interleaved, table, variants

GPT_NEOX = Architecture(
    name="gpt_neox",
    hf_class="GPTNeoXForCausalLM",
    traits={"norm": "layer", "mlp": "plain", "qkv_bias": True, "proj_bias": True, "mlp_bias": True},
    config_keys={
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "block_size",
        "vocab_size": "padded_vocab_size",
        "layer_norm_eps": "norm_eps",
        "use_parallel_residual": "parallel_residual",
        "attention_bias": ("qkv_bias", "proj_bias"),
        "tie_word_embeddings": "tie_embeddings",
    },
    config_values={"hidden_act": ("gelu",)},
    restore=lambda config: {"rotary_pct": config.rotary_percentage, "rotary_emb_base": config.rope_base},
    weights={
        "transformer.wte": "gpt_neox.embed_in",
        "transformer.h.{}.norm_1": "gpt_neox.layers.{}.input_layernorm",
        "transformer.h.{}.attn.qkv": Interleaved("gpt_neox.layers.{}.attention.query_key_value"),
        "transformer.h.{}.attn.proj": "gpt_neox.layers.{}.attention.dense",
        "transformer.h.{}.norm_2": "gpt_neox.layers.{}.post_attention_layernorm",
        "transformer.h.{}.mlp.fc": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
        "transformer.h.{}.mlp.proj": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "transformer.ln_f": "gpt_neox.final_layer_norm",
        "lm_head": "embed_out",
    },
    ignore=("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
    # Transformers from 5.14 on, and so adapters for PEFT, call the module lm_head; files of weights say embed_out.
    aliases={"lm_head": "embed_out"},
)

# fmt: off
_SIZES = table(
    "name        n_layer n_head n_embd padding_multiple",
    ("pythia-14m",     6,     4,   128,             128, {"block_size": 512}),
    ("pythia-31m",     6,     8,   256,             128, {"block_size": 1024}),
    ("pythia-70m",     6,     8,   512,             128),
    ("pythia-160m",   12,    12,   768,             128),
    ("pythia-410m",   24,    16,  1024,             128),
    ("pythia-1b",     16,     8,  2048,             128),
    ("pythia-1.4b",   24,    16,  2048,             128),
    ("pythia-2.8b",   32,    32,  2560,             128),
    ("pythia-6.9b",   32,    32,  4096,             256),
    ("pythia-12b",    36,    40,  5120,             512),
)
# fmt: on

FAMILY = Family(
    org="EleutherAI",
    architecture=GPT_NEOX,
    common={"vocab_size": 50254},
    models=_SIZES[:2] + variants(_SIZES[2:], "{}", "{}-deduped"),  # 14m and 31m have no deduped twin
)
