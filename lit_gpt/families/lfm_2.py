"""Liquid AI LFM2 (arXiv:2511.23404): short convolutions in most layers, attention in the others."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, Separate, table
from lit_gpt.families.llama import LLAMA

_KINDS = {"conv": "conv", "full_attention": "attention"}


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the layers' kinds, today's names of keys, and the width that the MLP really has."""
    hf = {
        {"tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"}.get(k, k): v
        for k, v in hf.items()
    }
    n, types = hf.get("num_hidden_layers", 0), hf.pop("layer_types", None)
    attention = hf.pop("full_attn_idxs", None)
    if types is None:
        types = ["full_attention" if attention is None or i in attention else "conv" for i in range(n)]
    hf["mixers"] = [_KINDS.get(kind, kind) for kind in types]
    multiple, factor = hf.pop("block_multiple_of", None) or 256, hf.pop("block_ffn_dim_multiplier", 1.0)
    if hf.pop("block_auto_adjust_ff_dim", True) and isinstance(hf.get("intermediate_size"), int):
        width = int((factor or 1.0) * int(2 * hf["intermediate_size"] / 3))
        hf["intermediate_size"] = multiple * -(-width // multiple)
    return {k: v for k, v in hf.items() if k not in _UNREAD}


def _restore(config: Any) -> dict[str, Any]:
    """Returns the kinds of layers, and that the width of the MLP is to be taken as it is."""
    kinds = {ours: theirs for theirs, ours in _KINDS.items()}
    types = [kinds[config.mixer(i)] for i in range(config.n_layer)]
    return {"layer_types": types, "block_auto_adjust_ff_dim": False}


_UNREAD = ("block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_swiglu")
_UNREAD += ("block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads", "theta")
_LFM_2 = replace(
    LLAMA,
    name="lfm2",
    hf_class="Lfm2ForCausalLM",
    other_classes=(),
    traits={**LLAMA.traits, "qk_norm": "head", "rope_base": 1000000.0, "tie_embeddings": True, "conv_size": 3},
    config_keys={
        **{k: v for k, v in LLAMA.config_keys.items() if k not in ("rms_norm_eps", "attention_bias", "mlp_bias")},
        "norm_eps": "norm_eps",
        "conv_L_cache": "conv_size",
        "conv_bias": "conv_bias",
        "mixers": "mixers",
    },
    other_types={"block_multiple_of": int, "block_ffn_dim_multiplier": float, "full_attn_idxs": list[int]},
    config_values={"hidden_act": ("silu",), "use_pos_enc": (True,)},
    weights={
        "transformer.wte": "model.embed_tokens",
        "transformer.h.{}.norm_1": "model.layers.{}.operator_norm",
        "transformer.h.{}.attn.qkv": Separate("model.layers.{}.self_attn.{qkv}"),
        "transformer.h.{}.attn.proj": "model.layers.{}.self_attn.out_proj",
        "transformer.h.{}.attn.norm_q": "model.layers.{}.self_attn.q_layernorm",
        "transformer.h.{}.attn.norm_k": "model.layers.{}.self_attn.k_layernorm",
        "transformer.h.{}.attn.in_proj": "model.layers.{}.conv.in_proj",
        "transformer.h.{}.attn.conv": "model.layers.{}.conv.conv",
        "transformer.h.{}.attn.out_proj": "model.layers.{}.conv.out_proj",
        "transformer.h.{}.norm_2": "model.layers.{}.ffn_norm",
        "transformer.h.{}.mlp.fc_1": "model.layers.{}.feed_forward.w1",
        "transformer.h.{}.mlp.fc_2": "model.layers.{}.feed_forward.w3",
        "transformer.h.{}.mlp.proj": "model.layers.{}.feed_forward.w2",
        "transformer.ln_f": "model.embedding_norm",
        "lm_head": "lm_head",
    },
    adapt=_adapt,
    restore=_restore,
)


_16 = {"n_layer": 16, "mixers": ["attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)]}
# fmt: off
FAMILY = Family(
    org="LiquidAI",
    architecture=_LFM_2,
    common={"vocab_size": 65536, "padded_vocab_size": 65536, "block_size": 128000},
    models=table(
        "name      n_head n_query_groups n_embd intermediate_size",
        ("LFM2-350M",   16,             8,  1024,             4608, _16),
        ("LFM2-700M",   24,             8,  1536,             6912, _16),
        ("LFM2-1.2B",   32,             8,  2048,             8192, _16),
    ),
)
# fmt: on
