"""TII Falcon 2 11B (arXiv:2407.14885): as Falcon 40B with one norm for attention and MLP."""

from dataclasses import replace

from lit_gpt.families.falcon import FALCON
from lit_gpt.families.falcon_40b import FALCON_40B
from lit_gpt.families.family import Family

_FALCON_2 = replace(
    FALCON_40B,
    name="falcon-11b",
    when={"new_decoder_architecture": (True,), "num_ln_in_parallel_attn": (1,)},
    traits=FALCON.traits | {"tie_embeddings": False},
    config_values={**FALCON_40B.config_values, "num_ln_in_parallel_attn": (1,)},
    weights=FALCON.weights,
)

FAMILY = Family(
    org="tiiuae",
    architecture=_FALCON_2,
    common={"vocab_size": 65024, "padded_vocab_size": 65024},
    models=[
        {
            "name": "falcon-11B",
            "n_layer": 60,
            "n_head": 32,
            "n_query_groups": 8,
            "n_embd": 4096,
            "block_size": 8192,
            "rope_base": 500042.0,
        }
    ],
)
