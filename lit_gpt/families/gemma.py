"""Google Gemma (arXiv:2403.08295)."""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, table, variants
from lit_gpt.families.llama import LLAMA


def adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with one name of the activation: the first releases say "gelu" for the tanh approximation."""
    hf = dict(hf)
    stated = (hf.pop("hidden_activation", None), hf.get("hidden_act"))
    known = [a for a in stated if a not in (None, "gelu")]
    hf["hidden_act"] = known[0] if known else "gelu_pytorch_tanh"
    return hf


GEMMA = replace(
    LLAMA,
    name="gemma",
    hf_class="GemmaForCausalLM",
    other_classes=(),
    traits={
        **LLAMA.traits,
        "activation": "gelu_tanh",
        "norm_unit_offset": True,
        "scale_embeddings": True,
        "tie_embeddings": True,
        "head_size": 256,
    },
    config_keys={k: v for k, v in LLAMA.config_keys.items() if k != "mlp_bias"},
    config_values={
        "hidden_act": ("gelu_pytorch_tanh",),
        "use_bidirectional_attention": (None, False),
    },
    adapt=adapt,
)

# fmt: off
FAMILY = Family(
    org="google",
    architecture=GEMMA,
    common={"vocab_size": 256000, "padded_vocab_size": 256000, "block_size": 8192, "norm_eps": 1e-6},
    models=[
        row | {"hf_repo": f"google/{row['name'].lower()}"}
        for row in variants(
            table(
                "name      n_layer n_head n_query_groups n_embd intermediate_size",
                ("Gemma-2b",    18,     8,             1,  2048,            16384),
                ("Gemma-7b",    28,    16,            16,  3072,            24576),
            ),
            "{}", "{}-it",
        )
    ],
)
# fmt: on
