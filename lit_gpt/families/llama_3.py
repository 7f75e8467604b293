"""Meta Llama 3 to 3.3 (arXiv:2407.21783): Llama architecture, a vocabulary of 128,256, scaled rotary frequencies."""

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.llama import LLAMA


def _scaled(factor: float) -> dict[str, object]:
    """Returns the fields of 3.1 and later, which scale rotary frequencies by `factor` to reach 131,072 tokens."""
    shape = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"block_size": 131072, "rope_scaling": {"type": "llama3", "factor": factor, **shape}}


_SMALL = _scaled(32.0) | {"tie_embeddings": True}
# fmt: off
_HEADER = "name            n_layer n_head n_query_groups n_embd intermediate_size"
_V3 = table(
    _HEADER,
    ("Meta-Llama-3-8B",      32,    32,             8,  4096,            14336),
    ("Meta-Llama-3-70B",     80,    64,             8,  8192,            28672),
)
_V3_1 = table(
    _HEADER,
    ("Llama-3.1-8B",         32,    32,             8,  4096,            14336, _scaled(8.0)),
    ("Llama-3.1-70B",        80,    64,             8,  8192,            28672, _scaled(8.0)),
    ("Llama-3.1-405B",      126,   128,             8, 16384,            53248, _scaled(8.0)),
    ("Llama-3.2-1B",         16,    32,             8,  2048,             8192, _SMALL),
    ("Llama-3.2-3B",         28,    24,             8,  3072,             8192, _SMALL),
)
_V3_3 = table(_HEADER, ("Llama-3.3-70B-Instruct", 80, 64, 8, 8192, 28672, _scaled(8.0)))
# fmt: on

FAMILY = Family(
    org="meta-llama",
    architecture=LLAMA,
    common={"vocab_size": 128256, "padding_multiple": 64, "block_size": 8192, "rope_base": 500000.0},
    models=variants(_V3 + _V3_1, "{}", "{}-Instruct") + _V3_3,
)
