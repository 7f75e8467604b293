"""Hugging Face SmolLM2, https://arxiv.org/abs/2502.02737."""

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.llama import LLAMA

# fmt: off
FAMILY = Family(
    org="HuggingFaceTB",
    architecture=LLAMA,
    common={"vocab_size": 49152, "padded_vocab_size": 49152, "block_size": 8192, "tie_embeddings": True},
    models=variants(
        table(
            "name           n_layer n_head n_query_groups n_embd intermediate_size rope_base",
            ("SmolLM2-135M",     30,     9,             3,   576,             1536,   100000.0),
            ("SmolLM2-360M",     32,    15,             5,   960,             2560,   100000.0),
            ("SmolLM2-1.7B",     24,    32,            32,  2048,             8192,   130000.0),
        ),
        "{}", "{}-Instruct",
    ),
)
# fmt: on
