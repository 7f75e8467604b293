"""ByteDance Seed-OSS (https://github.com/ByteDance-Seed/seed-oss): Llama with biases on queries, keys and values."""

from dataclasses import replace

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.llama import LLAMA

_SEED_OSS = replace(
    LLAMA,
    name="seed_oss",
    hf_class="SeedOssForCausalLM",
    other_classes=(),
    traits={**LLAMA.traits, "qkv_bias": True, "head_size": 128},
    config_keys={
        **{k: v for k, v in LLAMA.config_keys.items() if k != "attention_bias"},
        "attention_bias": "qkv_bias",
        "attention_out_bias": "proj_bias",
    },
)

FAMILY = Family(
    org="ByteDance-Seed",
    architecture=_SEED_OSS,
    common={
        "vocab_size": 155136,
        "padded_vocab_size": 155136,
        "block_size": 524288,
        "norm_eps": 1e-6,
        "rope_base": 10000000.0,
    },
    models=variants(
        table(
            "name n_layer n_head n_query_groups n_embd intermediate_size head_size",
            ("Seed-OSS-36B", 64, 80, 8, 5120, 27648, 128),
        ),
        "{}-Base",
        "{}-Instruct",
    ),
)
