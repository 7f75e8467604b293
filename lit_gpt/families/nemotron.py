"""NVIDIA Nemotron, Minitron (arXiv:2402.16819, arXiv:2407.14679): the square of ReLU, LayerNorm at 1 + weight."""

from dataclasses import replace

from lit_gpt.families.family import Family, table
from lit_gpt.families.llama import LLAMA

_NEMOTRON = replace(
    LLAMA,
    name="nemotron",
    hf_class="NemotronForCausalLM",
    other_classes=(),
    traits={
        **LLAMA.traits,
        "norm": "layer",
        "norm_unit_offset": True,
        "mlp": "plain",
        "activation": "relu2",
        "rotary_percentage": 0.5,
    },
    config_keys={
        **{k: v for k, v in LLAMA.config_keys.items() if k != "rms_norm_eps"},
        "norm_eps": "norm_eps",
    },
    config_values={"hidden_act": ("relu2",)},
    weights={
        **{k: v for k, v in LLAMA.weights.items() if ".mlp." not in k},
        "transformer.h.{}.mlp.fc": "model.layers.{}.mlp.up_proj",
        "transformer.h.{}.mlp.proj": "model.layers.{}.mlp.down_proj",
    },
)

# fmt: off
FAMILY = Family(
    org="nvidia",
    architecture=_NEMOTRON,
    common={"vocab_size": 256000, "padded_vocab_size": 256000, "block_size": 4096, "head_size": 128},
    models=table(
        "name                      n_layer n_head n_query_groups n_embd intermediate_size",
        ("Nemotron-Mini-4B-Instruct",   32,    24,             8,  3072,             9216),
        ("Minitron-4B-Base",            32,    24,             8,  3072,             9216),
        ("Minitron-8B-Base",            32,    48,             8,  4096,            16384),
    ),
)
# fmt: on
