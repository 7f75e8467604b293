"""Google Gemma 2 (arXiv:2408.00118): soft caps, a sliding window in every second layer, norms before and after."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.gemma import GEMMA
from lit_gpt.families.gemma import adapt as adapt_activation
from lit_gpt.families.window import read_window, write_layer_types

CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    hf = adapt_activation(hf)
    hf["hidden_activation"] = hf.pop("hidden_act")
    hf = read_window(hf, sliding_layers=list(range(0, hf.get("num_hidden_layers", 0), 2)))
    for cap in CAPS:
        if cap in hf:
            hf[cap] = hf[cap] or 0.0  # null means no cap
    return hf


def _restore(config: Any) -> dict[str, Any]:
    """Returns keys of config.json; a cap that is off is null, because transformers divides by any other."""
    return {**write_layer_types(config), **{cap: getattr(config, cap) or None for cap in CAPS}}


GEMMA_2 = replace(
    GEMMA,
    name="gemma2",
    hf_class="Gemma2ForCausalLM",
    traits={
        **GEMMA.traits,
        "post_norm": True,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
    },
    config_keys={
        **GEMMA.config_keys,
        "query_pre_attn_scalar": "query_pre_attn_scalar",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
        "sliding_window": "sliding_window",
        "sliding_layers": "sliding_layers",
    },
    config_values={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "use_bidirectional_attention": (None, False),
    },
    weights={
        **GEMMA.weights,
        "transformer.h.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
        "transformer.h.{}.norm_2": "model.layers.{}.pre_feedforward_layernorm",
        "transformer.h.{}.post_mlp_norm": "model.layers.{}.post_feedforward_layernorm",
    },
    adapt=_adapt,
    restore=_restore,
)

# fmt: off
_SIZES = table(
    "name       n_layer n_head n_query_groups n_embd intermediate_size head_size",
    ("gemma-2-2b",   26,     8,             4,  2304,             9216,      256),
    ("gemma-2-9b",   42,    16,             8,  3584,            14336,      256),
    ("gemma-2-27b",  46,    32,            16,  4608,            36864,      128, {"query_pre_attn_scalar": 144}),
)
# fmt: on
FAMILY = Family(
    org="google",
    architecture=GEMMA_2,
    common={"vocab_size": 256000, "padded_vocab_size": 256000, "block_size": 8192, "norm_eps": 1e-6},
    models=variants(
        [row | {"sliding_layers": list(range(0, row["n_layer"], 2))} for row in _SIZES],
        "{}",
        "{}-it",
    ),
)
