"""Stability AI FreeWilly2 (now Stable Beluga 2): Llama 2 70B finetuned on instructions."""

from lit_gpt.families.family import Family, table
from lit_gpt.families.llama import LLAMA

FAMILY = Family(
    org="stabilityai",
    architecture=LLAMA,
    common={"vocab_size": 32000, "padding_multiple": 64, "block_size": 4096},
    models=table(
        "name n_layer n_head n_query_groups n_embd intermediate_size",
        ("FreeWilly2", 80, 64, 8, 8192, 28672),
    ),
)
