"""Google Gemma 4 (https://ai.google.dev/gemma/docs), its text: larger heads and a partial rotation in every n-th layer.

The others have a sliding window. In the small models the last layers take keys and values of earlier ones, and each
layer reads the tokens once more from a table of its own; in the large ones full layers have no values beside keys.
"""

from dataclasses import replace
from typing import Any

from lit_gpt.errors import UserError, shown
from lit_gpt.families.family import Family, Stacked, table, variants
from lit_gpt.families.gemma_2 import GEMMA_2
from lit_gpt.families.window import read_window, write_layer_types

_ROPE = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
_PER_LAYER = {"head_dim": "full_head_size", "num_key_value_heads": "full_query_groups"}
"""Their size in a layer that has another one -> our field."""


def _adapt(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json with the sizes of full layers, of shared ones, and of the table, as our fields have them."""
    hf = {"rope_parameters": _ROPE, "hidden_size_per_layer_input": 256, **hf}
    n = hf.get("num_hidden_layers", 0)
    types = hf.get("layer_types") or ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(n)]
    hf["layer_types"] = [*types[: n - 1], "full_attention"] if n else types  # the last one always sees all
    full = [i for i in range(n) if hf["layer_types"][i] == "full_attention"]
    hf |= _full_sizes(hf, full)
    hf |= _mixture(hf)
    double, rows = hf.pop("use_double_wide_mlp", False), hf.pop("vocab_size_per_layer_input", None)
    if double and hf.get("num_kv_shared_layers"):
        hf["kv_shared_mlp_size"] = 2 * (hf.get("intermediate_size") or 0)
    if hf["hidden_size_per_layer_input"] and rows not in (None, hf.get("vocab_size")):
        raise UserError(
            f"config.json: vocab_size_per_layer_input={shown(rows)} is not supported for gemma4 models but for all "
            f"{hf.get('vocab_size')} tokens"
        )
    hf["hidden_size_per_layer_input"] = hf["hidden_size_per_layer_input"] or 0
    hf["final_logit_softcapping"] = hf.get("final_logit_softcapping") or 0.0
    return read_window(hf)


def _mixture(hf: dict[str, Any]) -> dict[str, Any]:
    """Takes what config.json says of experts; returns the width of one, and that of the MLP beside them."""
    if not hf.get("enable_moe_block"):
        return dict.fromkeys(("num_experts", "top_k_experts", "moe_intermediate_size"))
    sizes = {"intermediate_size": hf.get("moe_intermediate_size"), "dense_size": hf.get("intermediate_size")}
    return {**sizes, "moe_intermediate_size": None, "mlp": "moe"}


def _full_sizes(hf: dict[str, Any], full: list[int]) -> dict[str, Any]:
    """Takes what config.json says of the heads of full layers; returns it by our fields.

    Raises:
        UserError: it says something else of a layer.
    """
    head_size, groups = hf.pop("global_head_dim", None) or 512, hf.pop("num_global_key_value_heads", None)
    sizes = {"head_dim": head_size} | ({"num_key_value_heads": groups} if groups and hf.get("attention_k_eq_v") else {})
    by_layer = hf.pop("per_layer_config", None)
    if by_layer is None:
        return {_PER_LAYER[key]: size for key, size in sizes.items()}
    is_known = isinstance(by_layer, dict) and {str(i) for i in by_layer} <= {str(i) for i in full}
    stated = [by_layer.get(str(i), by_layer.get(i)) or {} for i in full] if is_known else []
    sizes = stated[0] if stated and isinstance(stated[0], dict) else {}
    alike = bool(stated) and all(other == sizes for other in stated)
    if not alike or sizes.keys() - _PER_LAYER.keys() or not all(type(x) is int for x in sizes.values()):
        raise UserError(f"config.json: per_layer_config={shown(by_layer)} is not supported for gemma4 models")
    return {_PER_LAYER[key]: size for key, size in sizes.items()}


def _restore(config: Any) -> dict[str, Any]:
    sizes = {theirs: size for theirs, ours in _PER_LAYER.items() if (size := getattr(config, ours))}
    full = [i for i in range(config.n_layer) if not config.is_sliding(i)]
    moe = config.mlp == "moe"
    return {
        **write_layer_types(config),
        "final_logit_softcapping": config.final_logit_softcapping or None,
        "use_double_wide_mlp": bool(config.kv_shared_mlp_size),
        "vocab_size_per_layer_input": config.padded_vocab_size,
        **({"intermediate_size": config.dense_size, "moe_intermediate_size": config.intermediate_size} if moe else {}),
        "per_layer_config": {str(i): sizes for i in full},
        **dict.fromkeys(_OURS),
    }


_OURS = ("full_head_size", "full_query_groups", "kv_shared_mlp_size", "dense_size", "mlp")
"""Keys that `_adapt` adds."""
_OF_SCORES = ("query_pre_attn_scalar", "attn_logit_softcapping")
_OF_LAYER = "model.layers.{}"
_GATE_UP, _MLP = f"{_OF_LAYER}.experts.gate_up_proj", "transformer.h.{}.mlp"
_GEMMA_4 = replace(
    GEMMA_2,
    name="gemma4",
    model_type="gemma4_text",
    hf_class="Gemma4ForCausalLM",
    traits={
        **{k: v for k, v in GEMMA_2.traits.items() if k != "attn_logit_softcapping"},
        "norm_unit_offset": False,
        "qk_norm": "head",
        "value_norm": True,
        "query_pre_attn_scalar": 1.0,
        "layer_scale": True,
        "sliding_window": 512,
        "final_logit_softcapping": 0.0,
    },
    config_keys={
        **{k: v for k, v in GEMMA_2.config_keys.items() if k not in _OF_SCORES},
        "num_kv_shared_layers": "kv_shared_layers",
        "attention_k_eq_v": "keys_as_values",
        "hidden_size_per_layer_input": "per_layer_input_size",
        "enable_moe_block": "dense_beside_experts",
        "num_experts": "n_expert",
        "top_k_experts": "n_expert_per_token",
        **{field: field for field in _OURS},
    },
    config_values={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "use_bidirectional_attention": (None, "vision"),
        "moe_intermediate_size": (None,),
    },
    other_types={
        "global_head_dim": int | None,
        "num_global_key_value_heads": int | None,
        "use_double_wide_mlp": bool,
        "moe_intermediate_size": int | None,
    },
    weights={
        **GEMMA_2.weights,
        "transformer.h.{}": _OF_LAYER,
        "transformer.h.{}.attn.norm_q": f"{_OF_LAYER}.self_attn.q_norm",
        "transformer.h.{}.attn.norm_k": f"{_OF_LAYER}.self_attn.k_norm",
        "transformer.h.{}.per_layer.gate_proj": f"{_OF_LAYER}.per_layer_input_gate",
        "transformer.h.{}.per_layer.proj": f"{_OF_LAYER}.per_layer_projection",
        "transformer.h.{}.per_layer.norm": f"{_OF_LAYER}.post_per_layer_input_norm",
        **{f"{_MLP}.dense.{ours}": GEMMA_2.weights[f"{_MLP}.{ours}"] for ours in ("fc_1", "fc_2", "proj")},
        f"{_MLP}.norm_dense": f"{_OF_LAYER}.pre_feedforward_layernorm",
        f"{_MLP}.post_dense_norm": f"{_OF_LAYER}.post_feedforward_layernorm_1",
        f"{_MLP}.norm_experts": f"{_OF_LAYER}.pre_feedforward_layernorm_2",
        f"{_MLP}.post_experts_norm": f"{_OF_LAYER}.post_feedforward_layernorm_2",
        f"{_MLP}.router": f"{_OF_LAYER}.router",
        f"{_MLP}.gate": f"{_OF_LAYER}.router.proj",
        f"{_MLP}.experts.{{}}.fc_1": Stacked(_GATE_UP, "first half"),
        f"{_MLP}.experts.{{}}.fc_2": Stacked(_GATE_UP, "second half"),
        f"{_MLP}.experts.{{}}.proj": Stacked(f"{_OF_LAYER}.experts.down_proj"),
        "transformer.per_layer.wte": "model.embed_tokens_per_layer",
        "transformer.per_layer.proj": "model.per_layer_model_projection",
        "transformer.per_layer.norm": "model.per_layer_projection_norm",
    },
    adapt=_adapt,
    restore=_restore,
    text_defaults={
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 131072,
        "vocab_size": 262144,
        "rms_norm_eps": 1e-6,
    },
)

_SLIDING_OF_5 = [i for i in range(35) if (i + 1) % 5]
_SMALL = {"block_size": 131072, "per_layer_input_size": 256}
_E2B = {**_SMALL, "kv_shared_layers": 20, "kv_shared_mlp_size": 12288, "sliding_layers": _SLIDING_OF_5}
_LARGE = {"block_size": 262144, "sliding_window": 1024, "keys_as_values": True}
_MIXTURE = {"mlp": "moe", "dense_beside_experts": True, "dense_size": 2112, "n_expert": 128, "n_expert_per_token": 8}
# fmt: off
_SIZES = table(
    "name            n_layer n_head n_query_groups n_embd intermediate_size",
    ("gemma-4-E2B",      35,     8,             1,  1536,             6144, _E2B),
    ("gemma-4-E4B",      42,     8,             2,  2560,            10240, {**_SMALL, "kv_shared_layers": 18}),
    ("gemma-4-31B",      60,    32,            16,  5376,            21504, {**_LARGE, "full_query_groups": 4}),
    ("gemma-4-26B-A4B",  30,    16,             8,  2816,              704,
        {**_LARGE, **_MIXTURE, "full_query_groups": 2}),
)
# fmt: on
FAMILY = Family(
    org="google",
    architecture=_GEMMA_4,
    common={
        "vocab_size": 262144,
        "padded_vocab_size": 262144,
        "norm_eps": 1e-6,
        "full_head_size": 512,
        "final_logit_softcapping": 30.0,
        "rope_base": 1000000.0,
        "rope_local_base": 10000.0,
        "rope_scaling": {"type": "proportional", "partial_rotary_factor": 0.25},
        "wrapper": "Gemma4ForConditionalGeneration",
    },
    models=variants(
        [{"sliding_layers": [i for i in range(row["n_layer"]) if (i + 1) % 6], **row} for row in _SIZES],
        "{}",
        "{}-it",
    ),
)
