"""Databricks Dolly v2: Pythia finetuned on databricks-dolly-15k (GPT-NeoX architecture)."""

from lit_gpt.families.family import Family, table
from lit_gpt.families.pythia import GPT_NEOX

# fmt: off
FAMILY = Family(
    org="databricks",
    architecture=GPT_NEOX,
    common={"vocab_size": 50254, "padded_vocab_size": 50280},
    models=table(
        "name          n_layer n_head n_embd",
        ("dolly-v2-3b",     32,    32,  2560),
        ("dolly-v2-7b",     32,    32,  4096),
        ("dolly-v2-12b",    36,    40,  5120),
    ),
)
# fmt: on
