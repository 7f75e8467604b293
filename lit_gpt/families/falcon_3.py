"""TII Falcon 3, https://falconllm.tii.ae/falcon3: Llama architecture with heads of 256 channels."""

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.llama import LLAMA

# fmt: off
FAMILY = Family(
    org="tiiuae",
    architecture=LLAMA,
    common={
        "vocab_size": 131072, "padded_vocab_size": 131072, "block_size": 32768, "head_size": 256, "norm_eps": 1e-6,
        "rope_base": 1000042.0,
    },
    models=variants(
        table(
            "name        n_layer n_head n_query_groups n_embd intermediate_size",
            ("Falcon3-1B",    18,     8,             4,  2048,             8192, {"block_size": 4096}),
            ("Falcon3-3B",    22,    12,             4,  3072,             9216),
            ("Falcon3-7B",    28,    12,             4,  3072,            23040),
            ("Falcon3-10B",   40,    12,             4,  3072,            23040),
        ),
        "{}-Base", "{}-Instruct",
    ),
)
# fmt: on
