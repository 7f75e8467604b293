"""LMSYS Vicuna and LongChat: Llama 1 and 2 finetuned on conversations, https://lmsys.org/blog/2023-03-30-vicuna."""

from lit_gpt.families.family import Family, table
from lit_gpt.families.llama import LLAMA

# fmt: off
FAMILY = Family(
    org="lmsys",
    architecture=LLAMA,
    common={"vocab_size": 32000, "padding_multiple": 64},
    models=table(
        "name                 n_layer n_head n_embd intermediate_size block_size norm_eps rope_condense_ratio",
        ("vicuna-7b-v1.3",         32,    32,  4096,            11008,      2048,    1e-6,                 1),
        ("vicuna-13b-v1.3",        40,    40,  5120,            13824,      2048,    1e-6,                 1),
        ("vicuna-33b-v1.3",        60,    52,  6656,            17920,      2048,    1e-6,                 1),
        ("vicuna-7b-v1.5",         32,    32,  4096,            11008,      4096,    1e-5,                 1),
        ("vicuna-7b-v1.5-16k",     32,    32,  4096,            11008,     16384,    1e-5,                 4),
        ("vicuna-13b-v1.5",        40,    40,  5120,            13824,      4096,    1e-5,                 1),
        ("vicuna-13b-v1.5-16k",    40,    40,  5120,            13824,     16384,    1e-5,                 4),
        ("longchat-7b-16k",        32,    32,  4096,            11008,     16384,    1e-6,                 8),
        ("longchat-13b-16k",       40,    40,  5120,            13824,     16384,    1e-6,                 8),
    ),
)
# fmt: on
