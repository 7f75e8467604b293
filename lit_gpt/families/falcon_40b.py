"""TII Falcon 40B and 180B (arXiv:2311.16867): grouped queries, a norm each for attention and MLP."""

from dataclasses import replace

from lit_gpt.families.falcon import FALCON
from lit_gpt.families.family import Family, table, variants

FALCON_40B = replace(
    FALCON,
    name="falcon-40b",
    model_type="falcon",
    when={"new_decoder_architecture": (True,), "num_ln_in_parallel_attn": (2, None)},
    traits={**FALCON.traits, "shared_attention_norm": False},
    config_values={
        **FALCON.config_values,
        "new_decoder_architecture": (True,),
        "num_ln_in_parallel_attn": (2, None),
        "parallel_attn": (True, False),  # not read in this architecture
    },
    weights={
        **FALCON.weights,
        "transformer.h.{}.norm_1": "transformer.h.{}.ln_attn",
        "transformer.h.{}.norm_2": "transformer.h.{}.ln_mlp",
    },
)

# fmt: off
_SIZES = table(
    "name       n_layer n_head n_query_groups n_embd",
    ("falcon-40b",   60,   128,             8,  8192),
    ("falcon-180B",  80,   232,             8, 14848),
)
# fmt: on
FAMILY = Family(
    org="tiiuae",
    architecture=FALCON_40B,
    common={"vocab_size": 65024, "padded_vocab_size": 65024},
    models=variants(_SIZES[:1], "{}", "{}-instruct") + variants(_SIZES[1:], "{}", "{}-chat"),
)
