"""TII Falcon 7B (arXiv:2311.16867), and what the Falcon architectures share."""

from typing import Any

from lit_gpt.families.family import Architecture, Family, Interleaved

_OLD_KEYS = {"n_head": "num_attention_heads", "n_layer": "num_hidden_layers", "n_head_kv": "num_kv_heads"}
"""Names in the config.json of the first releases."""


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with one number of key/value heads, however the file states it, and no class of norms."""
    hf = {_OLD_KEYS.get(k, k): v for k, v in hf.items()}
    hf["num_kv_heads"] = hf.get("num_kv_heads") or hf.get("num_attention_heads")
    if not hf.get("new_decoder_architecture") and hf.get("multi_query", True):
        hf["num_kv_heads"] = 1
    hf.pop("multi_query", None)
    hf["ffn_hidden_size"] = hf.get("ffn_hidden_size") or 4 * hf.get("hidden_size", 0)
    hf["max_position_embeddings"] = hf.get("max_position_embeddings", 2048)
    hf["layer_norm_epsilon"] = hf.get("layer_norm_epsilon", 1e-5)
    return hf


FALCON = Architecture(
    name="falcon",
    hf_class="FalconForCausalLM",
    other_classes=("RWForCausalLM",),
    when={"new_decoder_architecture": (False, None)},
    traits={
        "norm": "layer",
        "mlp": "plain",
        "parallel_residual": True,
        "shared_attention_norm": True,
        "rotary_percentage": 1.0,
        "tie_embeddings": True,
    },
    config_keys={
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_kv_heads": "n_query_groups",
        "hidden_size": "n_embd",
        "ffn_hidden_size": "intermediate_size",
        "max_position_embeddings": "block_size",
        "vocab_size": "padded_vocab_size",
        "layer_norm_epsilon": "norm_eps",
        "bias": ("qkv_bias", "proj_bias", "mlp_bias"),
        "tie_word_embeddings": "tie_embeddings",
    },
    config_values={
        "activation": ("gelu",),
        "alibi": (False,),
        "parallel_attn": (True,),
        "apply_residual_connection_post_layernorm": (False,),
        "new_decoder_architecture": (False,),
        "num_ln_in_parallel_attn": (None, 1),
    },
    weights={
        "transformer.wte": "transformer.word_embeddings",
        "transformer.h.{}.norm_1": "transformer.h.{}.input_layernorm",
        "transformer.h.{}.attn.qkv": Interleaved("transformer.h.{}.self_attention.query_key_value"),
        "transformer.h.{}.attn.proj": "transformer.h.{}.self_attention.dense",
        "transformer.h.{}.mlp.fc": "transformer.h.{}.mlp.dense_h_to_4h",
        "transformer.h.{}.mlp.proj": "transformer.h.{}.mlp.dense_4h_to_h",
        "transformer.ln_f": "transformer.ln_f",
        "lm_head": "lm_head",
    },
    adapt=_adapt,
    restore=lambda config: {"multi_query": config.n_query_groups == 1},
    ignore=("rotary.inv_freq", "rotary_emb.inv_freq"),
)

_SIZE = {"n_layer": 32, "n_head": 71, "n_query_groups": 1, "n_embd": 4544}
FAMILY = Family(
    org="tiiuae",
    architecture=FALCON,
    common={"vocab_size": 65024, "padded_vocab_size": 65024},
    models=[{"name": "falcon-7b", **_SIZE}, {"name": "falcon-7b-instruct", **_SIZE}],
)
