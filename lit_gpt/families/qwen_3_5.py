"""Alibaba Qwen 3.5 (https://github.com/QwenLM/Qwen3.5), the dense models: the gated delta rule in three of four layers.

The other layers have attention whose output is gated; a quarter of each head rotates.
"""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, OutputGate, Separate, table
from lit_gpt.families.llama import LLAMA

_KINDS = {"linear_attention": "delta", "full_attention": "attention"}
_ROPE_OF_IMAGES = ("mrope_section", "mrope_interleaved")


def read_mixers(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the layers' kinds, as listed or by the period of those with attention."""
    hf = dict(hf)
    n, period = hf.get("num_hidden_layers", 0), hf.pop("full_attention_interval", None) or 4
    types = hf.pop("layer_types", None)
    if types is None:
        types = ["linear_attention" if (i + 1) % period else "full_attention" for i in range(n)]
    hf["mixers"] = [_KINDS.get(kind, kind) for kind in types]
    for key in ("rope_parameters", "rope_scaling"):  # positions of text are the same in all three sections
        if isinstance(hf.get(key), dict):
            hf[key] = {k: v for k, v in hf[key].items() if k not in _ROPE_OF_IMAGES}
    for key in ("mtp_num_hidden_layers", "num_nextn_predict_layers", "mtp_use_dedicated_embeddings"):
        hf.pop(key, None)
    hf.pop("mamba_ssm_dtype", None)  # the state is fp32 here, too
    return hf


def write_mixers(config: Any) -> dict[str, Any]:
    kinds = {ours: theirs for theirs, ours in _KINDS.items()}
    return {"layer_types": [kinds[config.mixer(i)] for i in range(config.n_layer)]}


_DELTA = "model.layers.{}.linear_attn"
QWEN_3_5 = replace(
    LLAMA,
    name="qwen3_5",
    model_type="qwen3_5_text",
    hf_class="Qwen3_5ForCausalLM",
    other_classes=(),
    traits={
        **LLAMA.traits,
        "norm_unit_offset": True,
        "qk_norm": "head",
        "attention_gate": True,
        "rotary_percentage": 0.25,
        "head_size": 256,
        "conv_size": 4,
    },
    config_keys={
        **{k: v for k, v in LLAMA.config_keys.items() if k != "mlp_bias"},
        "linear_conv_kernel_dim": "conv_size",
        "linear_num_key_heads": "delta_key_heads",
        "linear_num_value_heads": "delta_value_heads",
        "linear_key_head_dim": "delta_key_size",
        "linear_value_head_dim": "delta_value_size",
        "mixers": "mixers",
    },
    config_values={"hidden_act": ("silu",), "attn_output_gate": (True,)},
    weights={
        **LLAMA.weights,
        "transformer.h.{}.attn.qkv": Separate("model.layers.{}.self_attn.{qkv}", gated=True),
        "transformer.h.{}.attn.out_gate": OutputGate("model.layers.{}.self_attn.q_proj"),
        "transformer.h.{}.attn.norm_q": "model.layers.{}.self_attn.q_norm",
        "transformer.h.{}.attn.norm_k": "model.layers.{}.self_attn.k_norm",
        "transformer.h.{}.attn": _DELTA,
        "transformer.h.{}.attn.conv": f"{_DELTA}.conv1d",
        "transformer.h.{}.attn.norm": f"{_DELTA}.norm",
        "transformer.h.{}.attn.out_proj": f"{_DELTA}.out_proj",
        **{f"transformer.h.{{}}.attn.in_{x}": f"{_DELTA}.in_proj_{x}" for x in ("qkv", "z", "b", "a")},
    },
    adapt=read_mixers,
    restore=write_mixers,
)

_DELTA_OF_9B = {"delta_key_heads": 16, "delta_value_heads": 32, "delta_key_size": 128, "delta_value_size": 128}
# fmt: off
FAMILY = Family(
    org="Qwen",
    architecture=QWEN_3_5,
    common={
        "vocab_size": 248320, "padded_vocab_size": 248320, "block_size": 262144, "norm_eps": 1e-6,
        "rope_base": 10000000.0, "wrapper": "Qwen3_5ForConditionalGeneration",
    },
    models=table(
        "name       n_layer n_head n_query_groups n_embd intermediate_size",
        ("Qwen3.5-9B",  32,    16,             4,  4096,            12288,
            {**_DELTA_OF_9B, "mixers": ["attention" if (i + 1) % 4 == 0 else "delta" for i in range(32)]}),
    ),
)
# fmt: on
