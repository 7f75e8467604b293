"""Meta CodeLlama (arXiv:2308.12950): Llama 2 trained on code, for longer texts."""

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.llama import LLAMA

# fmt: off
_SIZES = table(
    "name          n_layer n_head n_query_groups n_embd intermediate_size padded_vocab_size",
    ("CodeLlama-7b",    32,    32,            32,  4096,            11008,            32016),
    ("CodeLlama-13b",   40,    40,            40,  5120,            13824,            32016),
    ("CodeLlama-34b",   48,    64,             8,  8192,            22016,            32000),
    ("CodeLlama-70b",   80,    64,             8,  8192,            28672,            32016),
)
# fmt: on
_PYTHON = {name: {"padded_vocab_size": 32000} for name in ("CodeLlama-7b", "CodeLlama-13b")}
"""Fields of the Python variants that differ: the two smaller ones have no infilling tokens."""

FAMILY = Family(
    org="codellama",
    architecture=LLAMA,
    common={"vocab_size": 32016, "block_size": 16384, "rope_base": 1000000.0},
    models=variants(_SIZES, "{}-hf", "{}-Instruct-hf")
    + [row | _PYTHON.get(row["name"], {}) | {"name": f"{row['name']}-Python-hf"} for row in _SIZES],
)
