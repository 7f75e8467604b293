"""OpenLLaMA, a reproduction of Llama 1 under a free license, https://github.com/openlm-research/open_llama."""

from lit_gpt.families.family import Family, table
from lit_gpt.families.llama import LLAMA

# fmt: off
FAMILY = Family(
    org="openlm-research",
    architecture=LLAMA,
    common={"vocab_size": 32000, "padding_multiple": 64, "block_size": 2048, "norm_eps": 1e-6},
    models=table(
        "name              n_layer n_head n_embd intermediate_size",
        ("open_llama_3b",       26,    32,  3200,             8640),
        ("open_llama_7b",       32,    32,  4096,            11008),
        ("open_llama_13b",      40,    40,  5120,            13824),
        ("open_llama_3b_v2",    26,    32,  3200,             8640),
        ("open_llama_7b_v2",    32,    32,  4096,            11008),
    ),
)
# fmt: on
