"""Single models that others finetuned from Llama 2 7B: longer texts (Together), function calls (Trelis)."""

from lit_gpt.families.family import Family
from lit_gpt.families.llama import LLAMA

FAMILY = Family(
    org="togethercomputer",
    architecture=LLAMA,
    common={
        "vocab_size": 32000,
        "padding_multiple": 64,
        "n_layer": 32,
        "n_head": 32,
        "n_embd": 4096,
        "intermediate_size": 11008,
    },
    models=[
        {"name": "LLaMA-2-7B-32K", "block_size": 32768, "rope_condense_ratio": 8.0},
        {
            "name": "Llama-2-7b-chat-hf-function-calling-v2",
            "hf_repo": "Trelis/Llama-2-7b-chat-hf-function-calling-v2",
            "block_size": 4096,
            "norm_eps": 1e-6,
        },
    ],
)
