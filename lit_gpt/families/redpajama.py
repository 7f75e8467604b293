"""Together RedPajama-INCITE, https://www.together.ai/blog/redpajama-models-v1 (GPT-NeoX architecture)."""

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.pythia import GPT_NEOX

_SMALL, _LARGE = table("n_layer n_head n_embd", (32, 32, 2560), (32, 32, 4096))
_KINDS = [{"name": kind} for kind in ("Base", "Chat", "Instruct")]

FAMILY = Family(
    org="togethercomputer",
    architecture=GPT_NEOX,
    common={"vocab_size": 50254, "padding_multiple": 256, "rotary_percentage": 1.0, "parallel_residual": False},
    models=[_SMALL | row for row in variants(_KINDS, "RedPajama-INCITE-{}-3B-v1")]
    + [_LARGE | row for row in variants(_KINDS, "RedPajama-INCITE-7B-{}", "RedPajama-INCITE-{}-7B-v0.1")],
)
