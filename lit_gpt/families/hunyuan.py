"""Tencent Hunyuan, the dense models (https://github.com/Tencent-Hunyuan): a norm on queries and keys after rotation."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, table
from lit_gpt.families.llama import LLAMA

_UNREAD = ("org_vocab_size", "pool_type", "dense_list", "class_num", "cla_share_factor", "attention_head_dim")
_UNREAD += ("eod_token_id", "im_start_id", "im_end_id", "im_newline_id", "mask_init_id", "text_start_id", "text_end_id")


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the scaling by `alpha`, which only raises the rotary base, as that base."""
    hf = {k: v for k, v in hf.items() if k not in _UNREAD}
    heads = hf.get("num_attention_heads") or 1
    n = hf.get("head_dim") or hf.get("hidden_size", 0) // heads
    for key in ("rope_scaling", "rope_parameters"):
        scaling = hf.get(key)
        if isinstance(scaling, dict) and isinstance(scaling.get("alpha"), int | float) and n > 2:
            base = scaling.get("rope_theta") or hf.get("rope_theta") or 10000.0
            hf |= {key: None, "rope_theta": base * scaling["alpha"] ** (n / (n - 2))}
    return hf


_HUNYUAN = replace(
    LLAMA,
    name="hunyuan_v1_dense",
    hf_class="HunYuanDenseV1ForCausalLM",
    other_classes=(),
    traits={**LLAMA.traits, "qk_norm": "head", "rotates_first": True},
    config_values={
        "hidden_act": ("silu",),
        "use_qk_norm": (True,),
        "use_rotary_pos_emb": (True,),
        "norm_type": ("rms",),
    },
    weights={
        **LLAMA.weights,
        "transformer.h.{}.attn.norm_q": "model.layers.{}.self_attn.query_layernorm",
        "transformer.h.{}.attn.norm_k": "model.layers.{}.self_attn.key_layernorm",
    },
    adapt=_adapt,
)

FAMILY = Family(
    org="tencent",
    architecture=_HUNYUAN,
    common={
        "vocab_size": 128167,
        "padded_vocab_size": 128167,
        "block_size": 32768,
        "tie_embeddings": True,
        "rope_base": 10000.0 * 1000.0 ** (128 / 126),
    },
    models=table(
        "name n_layer n_head n_query_groups n_embd intermediate_size",
        ("Hunyuan-7B-Instruct", 32, 32, 8, 4096, 14336),
    ),
)
