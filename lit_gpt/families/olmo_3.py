"""Ai2 OLMo 3 (arXiv:2512.13961): OLMo 2 with a window in three of four layers, scaled rope in the others."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, table
from lit_gpt.families.olmo_2 import OLMO_2
from lit_gpt.families.window import read_window, write_layer_types


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with one rotary base for all layers by default, and scaling for those without a window."""
    hf = dict(hf)
    newer = hf.get("rope_parameters")
    newer = newer.get("rope_theta") if isinstance(newer, dict) else None
    hf["rope_local_base"] = hf.get("rope_theta") or newer or _OLMO_3.traits["rope_base"]
    return read_window(hf, sliding_layers=[i for i in range(hf.get("num_hidden_layers", 0)) if (i + 1) % 4])


_OLMO_3 = replace(
    OLMO_2,
    name="olmo3",
    hf_class="Olmo3ForCausalLM",
    traits={**OLMO_2.traits, "sliding_window": 4096, "rope_base": 500000.0, "rope_local_base": 500000.0},
    config_keys={
        **OLMO_2.config_keys,
        "sliding_window": "sliding_window",
        "sliding_layers": "sliding_layers",
        "rope_local_base": "rope_local_base",
    },
    adapt=_adapt,
    restore=write_layer_types,
)

_SCALING = {
    "type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "attention_factor": 1.2079441541679836,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_S7B, _S32B = (32, 32, 32, 4096, 11008), (64, 40, 8, 5120, 27648)
_SIZES = table(
    "name n_layer n_head n_query_groups n_embd intermediate_size",
    ("Olmo-3-1025-7B", *_S7B),
    ("Olmo-3-7B-Instruct", *_S7B),
    ("Olmo-3-7B-Think", *_S7B),
    ("Olmo-3-1125-32B", *_S32B),
    ("Olmo-3-32B-Think", *_S32B),
    ("Olmo-3.1-32B-Instruct", *_S32B),
    ("Olmo-3.1-32B-Think", *_S32B),
)
FAMILY = Family(
    org="allenai",
    architecture=_OLMO_3,
    common={
        "vocab_size": 100278,
        "padded_vocab_size": 100278,
        "block_size": 65536,
        "norm_eps": 1e-6,
        "rope_scaling": _SCALING,
    },
    models=[row | {"sliding_layers": [i for i in range(row["n_layer"]) if (i + 1) % 4]} for row in _SIZES],
)
