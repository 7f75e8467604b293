"""Stability AI StableCode-alpha (GPT-NeoX architecture)."""

from lit_gpt.families.family import Family
from lit_gpt.families.pythia import GPT_NEOX

FAMILY = Family(
    org="stabilityai",
    architecture=GPT_NEOX,
    common={"vocab_size": 49152, "padded_vocab_size": 49152, "n_layer": 32, "n_head": 32, "n_embd": 2560},
    models=[
        {"name": "stablecode-completion-alpha-3b", "block_size": 16384},
        {"name": "stablecode-completion-alpha-3b-4k", "block_size": 4096},
        {"name": "stablecode-instruct-alpha-3b", "block_size": 4096},
    ],
)
