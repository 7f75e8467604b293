"""LG EXAONE 4 (arXiv:2507.11407): norms after, a window in three of four layers, and no rotation in the others."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, table
from lit_gpt.families.llama import LLAMA
from lit_gpt.families.olmo_2 import OLMO_2
from lit_gpt.families.window import read_window, write_layer_types


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the windows and, if there are any, without rotation in the layers that have none.

    The layers are listed, or a pattern such as LLLG or its length says which of them are global; the last one is.
    """
    hf, n = dict(hf), hf.get("num_hidden_layers", 0)
    pattern = hf.pop("sliding_window_pattern", 4) or 0
    hf.pop("cache_implementation", None)
    if isinstance(pattern, str):
        sliding = [i for i in range(n) if pattern and pattern[i % len(pattern)] == "L" and i < n - 1]
    else:
        sliding = [i for i in range(n) if pattern and (i + 1) % pattern]
    types = hf.get("layer_types")
    if not hf.get("sliding_window", 4096):
        return {**read_window({**hf, "layer_types": None, "sliding_window": None}), "unrotated_layers": None}
    if isinstance(types, list):
        sliding = [i for i, kind in enumerate(types) if kind == "sliding_attention"]
    unrotated = [i for i in range(n) if i not in sliding]
    return {**read_window(hf, sliding_layers=sliding), "unrotated_layers": unrotated or None}


_EXAONE_4 = replace(
    OLMO_2,
    name="exaone4",
    hf_class="Exaone4ForCausalLM",
    traits={**OLMO_2.traits, "qk_norm": "head", "sliding_window": 4096},
    config_keys={
        **{k: v for k, v in LLAMA.config_keys.items() if k not in ("attention_bias", "mlp_bias")},
        "sliding_window": "sliding_window",
        "sliding_layers": "sliding_layers",
        "unrotated_layers": "unrotated_layers",
    },
    other_types={"sliding_window_pattern": int | str},
    adapt=_adapt,
    restore=write_layer_types,
)

_SCALED = {"type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_SCALED |= {"original_max_position_embeddings": 8192}
_GLOBAL = list(range(3, 64, 4))
_LARGE = {"sliding_layers": [i for i in range(64) if i not in _GLOBAL], "unrotated_layers": _GLOBAL}
_SMALL = {"sliding_window": 0, "tie_embeddings": True, "block_size": 65536}
# fmt: off
FAMILY = Family(
    org="LGAI-EXAONE",
    architecture=_EXAONE_4,
    common={
        "vocab_size": 102400, "padded_vocab_size": 102400, "block_size": 131072, "rope_base": 1000000.0,
        "rope_scaling": _SCALED,
    },
    models=table(
        "name            n_layer n_head n_query_groups n_embd intermediate_size",
        ("EXAONE-4.0-1.2B",   30,    32,             8,  2048,             4096, _SMALL),
        ("EXAONE-4.0-32B",    64,    40,             8,  5120,            27392, _LARGE),
    ),
)
# fmt: on
