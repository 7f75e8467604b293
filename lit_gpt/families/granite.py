"""IBM Granite 3 (https://github.com/ibm-granite/granite-3.1-language-models): Llama with four multipliers."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.llama import LLAMA


def read_multipliers(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the factor of the attention scores as the number whose root divides them."""
    hf = dict(hf)
    factor = hf.pop("attention_multiplier", 1.0)
    return {**hf, "query_pre_attn_scalar": factor**-2 if isinstance(factor, int | float) and factor > 0 else factor}


def write_multipliers(config: Any) -> dict[str, Any]:
    """Returns the factor of the attention scores, with the digits that a file would state."""
    return {"attention_multiplier": float(f"{(config.query_pre_attn_scalar or config.head_size) ** -0.5:.12g}")}


GRANITE = replace(
    LLAMA,
    name="granite",
    hf_class="GraniteForCausalLM",
    other_classes=(),
    config_keys={
        **LLAMA.config_keys,
        "embedding_multiplier": "embedding_factor",
        "residual_multiplier": "residual_factor",
        "logits_scaling": "logit_divisor",
        "query_pre_attn_scalar": "query_pre_attn_scalar",
    },
    adapt=read_multipliers,
    restore=write_multipliers,
)

_SHARED = {"embedding_factor": 12.0, "residual_factor": 0.22, "tie_embeddings": True}
_2B = {**_SHARED, "logit_divisor": 8.0, "query_pre_attn_scalar": 64.0**2}
_8B = {**_SHARED, "logit_divisor": 16.0, "query_pre_attn_scalar": 128.0**2}
# fmt: off
FAMILY = Family(
    org="ibm-granite",
    architecture=GRANITE,
    common={"vocab_size": 49159, "padded_vocab_size": 49159, "block_size": 131072, "rope_base": 10000000.0},
    models=variants(
        table(
            "name           n_layer n_head n_query_groups n_embd intermediate_size",
            ("granite-3.3-2b",   40,    32,             8,  2048,             8192, _2B),
            ("granite-3.3-8b",   40,    32,             8,  4096,            12800, _8B),
        ),
        "{}-base", "{}-instruct",
    ),
)
# fmt: on
