"""Alibaba Qwen 2 and 2.5 (arXiv:2407.10671, arXiv:2412.15115): Llama with biases on queries, keys and values."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.mistral import MISTRAL
from lit_gpt.families.window import read_window, write_layer_types


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with a window only if `use_sliding_window` is set, from layer `max_window_layers` on."""
    hf = dict(hf)
    first = hf.pop("max_window_layers", 28)
    if not hf.pop("use_sliding_window", False):
        hf["sliding_window"] = None
    return read_window(hf, sliding_layers=list(range(first, hf.get("num_hidden_layers", 0))))


def _restore(config: Any) -> dict[str, Any]:
    return {**write_layer_types(config), "use_sliding_window": config.sliding_window > 0}


QWEN_2 = replace(
    MISTRAL,
    name="qwen2",
    hf_class="Qwen2ForCausalLM",
    traits={**MISTRAL.traits, "qkv_bias": True, "sliding_window": 0},
    config_keys={k: v for k, v in MISTRAL.config_keys.items() if k != "head_dim"},
    config_values={**MISTRAL.config_values, "use_mrope": (False,)},
    adapt=_adapt,
    restore=_restore,
)

_TIED, _LARGE = {"tie_embeddings": True}, {"padded_vocab_size": 152064}
# fmt: off
_HEADER = "name         n_layer n_head n_query_groups n_embd intermediate_size"
_V2 = table(
    _HEADER,
    ("Qwen2-0.5B",      24,    14,             2,   896,             4864, _TIED),
    ("Qwen2-1.5B",      28,    12,             2,  1536,             8960, _TIED),
    ("Qwen2-7B",        28,    28,             4,  3584,            18944, _LARGE),
    ("Qwen2-72B",       80,    64,             8,  8192,            29568, _LARGE),
)
_V2_5 = table(
    _HEADER,
    ("Qwen2.5-0.5B",    24,    14,             2,   896,             4864, _TIED),
    ("Qwen2.5-1.5B",    28,    12,             2,  1536,             8960, _TIED),
    ("Qwen2.5-3B",      36,    16,             2,  2048,            11008, _TIED),
    ("Qwen2.5-7B",      28,    28,             4,  3584,            18944, _LARGE),
    ("Qwen2.5-14B",     48,    40,             8,  5120,            13824, _LARGE),
    ("Qwen2.5-32B",     64,    40,             8,  5120,            27648, _LARGE),
    ("Qwen2.5-72B",     80,    64,             8,  8192,            29568, _LARGE),
)
# fmt: on
_CODER = [
    {**row, "name": row["name"].replace("2.5-", "2.5-Coder-")} for row in variants(_V2_5[:6], "{}", "{}-Instruct")
]
FAMILY = Family(
    org="Qwen",
    architecture=QWEN_2,
    common={
        "vocab_size": 151646,
        "padded_vocab_size": 151936,
        "block_size": 32768,
        "norm_eps": 1e-6,
        "rope_base": 1000000.0,
    },
    models=variants(_V2 + _V2_5, "{}", "{}-Instruct") + _CODER,
)
