"""Google Gemma 3 (arXiv:2503.19786), its text: a sliding window, with a smaller rotary base, in five of six layers."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.gemma_2 import CAPS, GEMMA_2
from lit_gpt.families.window import read_window, write_layer_types


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with a window in the layers that `layer_types` marks, or else in all but every n-th."""
    hf = dict(hf)
    stated = [hf.pop(key, None) for key in ("sliding_window_pattern", "_sliding_window_pattern")]
    period = next((n for n in stated if n), 6)
    return read_window(hf, sliding_layers=[i for i in range(hf.get("num_hidden_layers", 0)) if (i + 1) % period])


_GEMMA_3 = replace(
    GEMMA_2,
    name="gemma3",
    model_type="gemma3_text",
    hf_class="Gemma3ForCausalLM",
    traits={
        **{k: v for k, v in GEMMA_2.traits.items() if k not in CAPS},
        "qk_norm": "head",
        "rope_base": 1000000.0,
        "rope_local_base": 10000.0,
    },
    config_keys={
        **{k: v for k, v in GEMMA_2.config_keys.items() if k not in CAPS},
        "rope_local_base_freq": "rope_local_base",
    },
    config_values={**GEMMA_2.config_values, **dict.fromkeys(CAPS, (None,))},
    weights={
        **GEMMA_2.weights,
        "transformer.h.{}.attn.norm_q": "model.layers.{}.self_attn.q_norm",
        "transformer.h.{}.attn.norm_k": "model.layers.{}.self_attn.k_norm",
    },
    adapt=_adapt,
    restore=write_layer_types,
    text_defaults={
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_size": 2304,
        "head_dim": 256,
        "intermediate_size": 9216,
        "max_position_embeddings": 131072,
        "vocab_size": 262208,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
    },
)

_WITH_IMAGES = {
    "wrapper": "Gemma3ForConditionalGeneration",
    "block_size": 131072,
    "padded_vocab_size": 262208,
    "sliding_window": 1024,
    "rope_condense_ratio": 8.0,
}
_27B = {**_WITH_IMAGES, "head_size": 128, "query_pre_attn_scalar": 168}
# fmt: off
_SIZES = table(
    "name           n_layer n_head n_query_groups n_embd intermediate_size",
    ("gemma-3-270m",    18,     4,             1,   640,             2048),
    ("gemma-3-270m-it", 18,     4,             1,   640,             2048),
    ("gemma-3-1b-pt",   26,     4,             1,  1152,             6912),
    ("gemma-3-1b-it",   26,     4,             1,  1152,             6912),
) + variants(table(
    "name           n_layer n_head n_query_groups n_embd intermediate_size",
    ("gemma-3-4b",      34,     8,             4,  2560,            10240, _WITH_IMAGES),
    ("gemma-3-12b",     48,    16,             8,  3840,            15360, _WITH_IMAGES),
    ("gemma-3-27b",     62,    32,            16,  5376,            21504, _27B),
), "{}-pt", "{}-it")
# fmt: on
FAMILY = Family(
    org="google",
    architecture=_GEMMA_3,
    common={
        "vocab_size": 262144,
        "padded_vocab_size": 262144,
        "block_size": 32768,
        "norm_eps": 1e-6,
        "sliding_window": 512,
    },
    models=[row | {"sliding_layers": [i for i in range(row["n_layer"]) if (i + 1) % 6]} for row in _SIZES],
)
