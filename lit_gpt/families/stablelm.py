"""Stability AI StableLM-alpha, base and tuned, https://github.com/Stability-AI/StableLM (GPT-NeoX architecture)."""

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.pythia import GPT_NEOX

# fmt: off
FAMILY = Family(
    org="stabilityai",
    architecture=GPT_NEOX,
    common={"vocab_size": 50254, "block_size": 4096},
    models=variants(
        table(
            "name  n_layer n_head n_embd padding_multiple",
            ("3b",      16,    32,  4096,             512),
            ("7b",      16,    48,  6144,             256),
        ),
        "stablelm-base-alpha-{}", "stablelm-tuned-alpha-{}",
    ),
)
# fmt: on
