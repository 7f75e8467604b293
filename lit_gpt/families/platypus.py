"""Platypus (arXiv:2308.07317): Llama 1 and 2 finetuned on questions of science and logic.

Platypus2-70B has 64 key/value heads here, as Lit-GPT listed it; a conversion follows the config.json of the
download instead.
"""

from lit_gpt.families.family import Family, table
from lit_gpt.families.llama import LLAMA

# fmt: off
FAMILY = Family(
    org="garage-bAInd",
    architecture=LLAMA,
    common={"vocab_size": 32000, "padding_multiple": 64},
    models=table(
        "name                    n_layer n_head n_query_groups n_embd intermediate_size block_size norm_eps",
        ("Platypus-30B",              60,    52,            52,  6656,            17920,      2048,    1e-6),
        ("Platypus2-7B",              32,    32,            32,  4096,            11008,      4096,    1e-5),
        ("Platypus2-13B",             40,    40,            40,  5120,            13824,      4096,    1e-5),
        ("Platypus2-70B",             80,    64,            64,  8192,            28672,      4096,    1e-5),
        ("Camel-Platypus2-13B",       40,    40,            40,  5120,            13824,      4096,    1e-5),
        ("Camel-Platypus2-70B",       80,    64,             8,  8192,            28672,      4096,    1e-5),
        ("Stable-Platypus2-13B",      40,    40,            40,  5120,            13824,      4096,    1e-5),
        ("Platypus2-70B-instruct",    80,    64,             8,  8192,            28672,      4096,    1e-5),
    ),
)
# fmt: on
