"""Mistral 7B (arXiv:2310.06825), v0.2, v0.3, Nemo and Small 3."""

from dataclasses import replace

from lit_gpt.families.family import Family
from lit_gpt.families.llama import LLAMA
from lit_gpt.families.window import read_window, write_window

_BIASES = ("attention_bias", "mlp_bias")

MISTRAL = replace(
    LLAMA,
    name="mistral",
    hf_class="MistralForCausalLM",
    other_classes=(),
    traits={**LLAMA.traits, "sliding_window": 4096},  # the default of transformers
    config_keys={
        **{k: v for k, v in LLAMA.config_keys.items() if k not in _BIASES},
        "sliding_window": "sliding_window",
        "sliding_layers": "sliding_layers",
    },
    config_values={"hidden_act": ("silu",), **{k: (False,) for k in _BIASES}},
    adapt=read_window,
    restore=write_window,
)

_SIZE = {"n_layer": 32, "n_head": 32, "n_query_groups": 8, "n_embd": 4096, "intermediate_size": 14336}
_V2 = {**_SIZE, "sliding_window": 0, "rope_base": 1000000.0}
_V3 = {**_V2, "vocab_size": 32768}
_SMALL = {**_V2, "n_layer": 40, "n_embd": 5120, "head_size": 128, "intermediate_size": 32768, "vocab_size": 131072}
_SMALL_3 = {**_SMALL, "rope_base": 100000000.0}
_SMALL_3_1 = {**_SMALL, "rope_base": 1000000000.0, "block_size": 131072, "wrapper": "Mistral3ForConditionalGeneration"}
_NEMO = {**_V2, "n_layer": 40, "n_embd": 5120, "head_size": 128, "vocab_size": 131072, "block_size": 131072}
FAMILY = Family(
    org="mistralai",
    architecture=MISTRAL,
    common={"vocab_size": 32000, "padding_multiple": 64, "block_size": 32768},
    models=[
        {"name": "Mistral-7B-v0.1", **_SIZE},
        {"name": "Mistral-7B-Instruct-v0.1", **_SIZE},
        {"name": "Mistral-7B-Instruct-v0.2", **_V2},
        {"name": "Mistral-7B-v0.3", **_V3},
        {"name": "Mistral-7B-Instruct-v0.3", **_V3},
        {"name": "Mistral-Nemo-Base-2407", **_NEMO},
        {"name": "Mistral-Nemo-Instruct-2407", **_NEMO},
        {"name": "Mistral-Small-24B-Base-2501", **_SMALL_3},
        {"name": "Mistral-Small-24B-Instruct-2501", **_SMALL_3},
        {"name": "Mistral-Small-3.1-24B-Base-2503", **_SMALL_3_1},
        {"name": "Mistral-Small-3.1-24B-Instruct-2503", **_SMALL_3_1},
        {"name": "Mistral-Small-3.2-24B-Instruct-2506", **_SMALL_3_1},
    ],
)
