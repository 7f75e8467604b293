"""Meta Llama 4 (https://ai.meta.com/blog/llama-4-multimodal-intelligence), its text, up to 8,191 tokens.

Three of four layers see their own chunk of 8,192 tokens only, and from there on the others scale queries by their
position. Up to that length all layers see all tokens, and the factor is one.
"""

from dataclasses import replace
from typing import Any

from lit_gpt.families.family import Family, Separate, Stacked, table, variants
from lit_gpt.families.llama import LLAMA


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the layers without experts and without rotation, and the length of one chunk."""
    hf = {"attention_chunk_size": 8192, "floor_scale": 8192, "intermediate_size_mlp": 16384, **hf}
    n, step = hf.get("num_hidden_layers", 0), hf.pop("interleave_moe_layer_step", None) or 1
    with_experts = hf.pop("moe_layers", None)
    with_experts = range(step - 1, n, step) if with_experts is None else with_experts
    hf["dense_layers"] = [i for i in range(n) if i not in with_experts] or None
    period, rotated = hf.pop("no_rope_layer_interval", None) or 4, hf.pop("no_rope_layers", None)
    rotated = rotated or [int((i + 1) % period != 0) for i in range(n)]
    hf["unrotated_layers"] = [i for i, rotates in enumerate(rotated[:n]) if not rotates] or None
    hf["qk_norm"] = "unweighted" if hf.pop("use_qk_norm", True) else "none"
    limits = [hf.pop("attention_chunk_size"), (hf.pop("floor_scale") or 1) - 1]
    limits = limits if hf.pop("attn_temperature_tuning", True) else limits[:1]
    if isinstance(hf.get("max_position_embeddings"), int):
        hf["max_position_embeddings"] = min(hf["max_position_embeddings"], *(x for x in limits if x))
    hf["shared_expert_intermediate_size"] = hf.get("intermediate_size")
    return {k: v for k, v in hf.items() if k not in ("layer_types", "attn_scale")}  # the kinds follow from the rotation


def _restore(config: Any) -> dict[str, Any]:
    alone = config.dense_layers or ()
    unrotated = config.unrotated_layers or ()
    return {
        "moe_layers": [i for i in range(config.n_layer) if i not in alone],
        "no_rope_layers": [int(i not in unrotated) for i in range(config.n_layer)],
        "use_qk_norm": config.qk_norm == "unweighted",
        "shared_expert_intermediate_size": None,
        "qk_norm": None,
    }


_MLP = "model.layers.{}.feed_forward"
_GATE_UP, _DOWN = f"{_MLP}.experts.gate_up_proj", f"{_MLP}.experts.down_proj"
_LLAMA_4 = replace(
    LLAMA,
    name="llama4",
    model_type="llama4_text",
    hf_class="Llama4ForCausalLM",
    other_classes=(),
    traits={
        **LLAMA.traits,
        "mlp": "moe",
        "router": "sigmoid_of_inputs",
        "rotates_first": True,
        "rope_base": 500000.0,
        "head_size": 128,
        "n_expert_per_token": 1,
    },
    config_keys={
        **{k: v for k, v in LLAMA.config_keys.items() if k != "mlp_bias"},
        "shared_expert_intermediate_size": "shared_expert_size",
        "intermediate_size_mlp": "dense_size",
        "dense_layers": "dense_layers",
        "num_local_experts": "n_expert",
        "num_experts_per_tok": "n_expert_per_token",
        "unrotated_layers": "unrotated_layers",
        "qk_norm": "qk_norm",
    },
    config_values={"hidden_act": ("silu",)},
    other_types={
        **dict.fromkeys(("interleave_moe_layer_step", "no_rope_layer_interval"), int),
        **dict.fromkeys(("attention_chunk_size", "floor_scale"), int | None),
        "moe_layers": list[int] | None,
        "no_rope_layers": list[int] | None,
    },
    weights={
        **{k: v for k, v in LLAMA.weights.items() if ".mlp." not in k},
        "transformer.h.{}.attn.qkv": Separate("model.layers.{}.self_attn.{qkv}", pairs=True),
        "transformer.h.{}.mlp.fc_1": f"{_MLP}.gate_proj",
        "transformer.h.{}.mlp.fc_2": f"{_MLP}.up_proj",
        "transformer.h.{}.mlp.proj": f"{_MLP}.down_proj",
        "transformer.h.{}.mlp.gate": f"{_MLP}.router",
        "transformer.h.{}.mlp.experts.{}.fc_1": Stacked(_GATE_UP, "first half", transposed=True),
        "transformer.h.{}.mlp.experts.{}.fc_2": Stacked(_GATE_UP, "second half", transposed=True),
        "transformer.h.{}.mlp.experts.{}.proj": Stacked(_DOWN, transposed=True),
        "transformer.h.{}.mlp.shared.fc_1": f"{_MLP}.shared_expert.gate_proj",
        "transformer.h.{}.mlp.shared.fc_2": f"{_MLP}.shared_expert.up_proj",
        "transformer.h.{}.mlp.shared.proj": f"{_MLP}.shared_expert.down_proj",
    },
    swaps_factors=True,
    adapt=_adapt,
    restore=_restore,
)

# sizes as remembered, held to the number of parameters by tests/test_sizes_of_models.py
_SCOUT = {"qk_norm": "unweighted", "n_expert": 16}
_MAVERICK = {"n_expert": 128, "dense_layers": list(range(0, 48, 2))}
# fmt: off
FAMILY = Family(
    org="meta-llama",
    architecture=_LLAMA_4,
    common={
        "vocab_size": 202048, "padded_vocab_size": 202048, "block_size": 8191, "shared_expert_size": 8192,
        "dense_size": 16384, "unrotated_layers": list(range(3, 48, 4)), "wrapper": "Llama4ForConditionalGeneration",
    },
    models=variants(table(
        "name                       n_layer n_head n_query_groups n_embd intermediate_size",
        ("Llama-4-Scout-17B-16E",        48,    40,             8,  5120,             8192, _SCOUT),
        ("Llama-4-Maverick-17B-128E",    48,    40,             8,  5120,             8192, _MAVERICK),
    ), "{}", "{}-Instruct"),
)
# fmt: on
