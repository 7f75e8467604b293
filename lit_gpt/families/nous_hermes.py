"""Nous Research Hermes: Llama 1 and 2 finetuned on instructions, with a few more tokens."""

from lit_gpt.families.family import Family, table
from lit_gpt.families.llama import LLAMA

# fmt: off
FAMILY = Family(
    org="NousResearch",
    architecture=LLAMA,
    common={"vocab_size": 32000},
    models=table(
        "name                    n_layer n_head n_embd intermediate_size block_size norm_eps padded_vocab_size",
        ("Nous-Hermes-llama-2-7b",    32,    32,  4096,            11008,      4096,    1e-5,            32000),
        ("Nous-Hermes-13b",           40,    40,  5120,            13824,      2048,    1e-6,            32001),
        ("Nous-Hermes-Llama2-13b",    40,    40,  5120,            13824,      4096,    1e-5,            32032),
    ),
)
# fmt: on
