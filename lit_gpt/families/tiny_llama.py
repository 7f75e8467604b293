"""TinyLlama (arXiv:2401.02385): 1.1 billion parameters, three trillion tokens."""

from lit_gpt.families.family import Family
from lit_gpt.families.llama import LLAMA

FAMILY = Family(
    org="TinyLlama",
    architecture=LLAMA,
    common={
        "vocab_size": 32000,
        "padding_multiple": 64,
        "block_size": 2048,
        "n_layer": 22,
        "n_head": 32,
        "n_query_groups": 4,
        "n_embd": 2048,
        "intermediate_size": 5632,
    },
    models=[
        {"name": "tiny-llama-1.1b", "hf_repo": "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"},
        {"name": "tiny-llama-1.1b-chat", "hf_repo": "TinyLlama/TinyLlama-1.1B-Chat-v1.0"},
    ],
)
