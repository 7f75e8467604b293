"""The limits of a configuration's values, far beyond any model's, and what has to fit together."""

import math
from collections.abc import Mapping
from typing import Any

from lit_gpt.errors import UserError, shown
from lit_gpt.records import fits, misfit

_MOST = 1e15
RANGES: dict[str, tuple[float, float]] = {
    "n_layer": (1, 1024),
    "n_head": (1, 4096),
    "n_embd": (1, 2**20),
    "head_size": (0, 2**16),
    "n_query_groups": (0, 4096),
    "intermediate_size": (0, 2**24),
    "block_size": (1, 2**31 - 1),
    "vocab_size": (1, 2**24),
    "padding_multiple": (1, 2**24),
    "padded_vocab_size": (0, 2**24),
    "norm_eps": (0, 1),
    "n_expert": (0, 4096),
    "n_expert_per_token": (0, 4096),
    "router_scale": (1e-6, _MOST),
    **dict.fromkeys(("router_groups", "router_groups_per_token"), (1, 4096)),
    **dict.fromkeys(("shared_expert_size", "dense_size", "kv_shared_mlp_size", "latent_size"), (0, 2**24)),
    **dict.fromkeys(("full_head_size", "per_layer_input_size"), (0, 2**16)),
    **dict.fromkeys(("full_query_groups", "kv_shared_layers"), (0, 4096)),
    "embedding_factor": (1e-6, _MOST),
    "residual_factor": (1e-6, _MOST),
    "logit_divisor": (1e-6, _MOST),
    **dict.fromkeys(("delta_key_heads", "delta_value_heads"), (0, 4096)),
    **dict.fromkeys(("delta_key_size", "delta_value_size"), (0, 2**16)),
    **dict.fromkeys(("ssm_heads", "ssm_groups"), (0, 4096)),
    **dict.fromkeys(("ssm_head_size", "ssm_state_size"), (0, 2**16)),
    "ssm_min_step": (0, 1),
    "conv_size": (0, 64),
    "final_logit_softcapping": (0, _MOST),
    "query_pre_attn_scalar": (0, _MOST),
    "attn_logit_softcapping": (0, _MOST),
    "sliding_window": (0, 2**31 - 1),
    "rotary_percentage": (0, 1),
    "rope_base": (2, _MOST),
    "rope_condense_ratio": (1e-6, _MOST),
    "rope_local_base": (0, _MOST),
}
"""Field -> its smallest and largest value: far beyond any model's, and small enough to make the modules of a model
without its weights, and to say that they do not fit."""
_MIXERS = ("attention", "conv", "delta", "mamba2", "none")
"""What may mix the tokens in a layer."""
_MAX_EXPERTS = 2**15
"""Largest number of experts in all layers, which are modules of their own."""
ROPE_SCALINGS = {
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
    "proportional": (),
}
"""Kind of rope scaling -> its required parameters."""
_SCALING_VALUES: dict[str, tuple[Any, float]] = {
    "factor": (float, 1e-6),
    "low_freq_factor": (float, 1e-6),
    "high_freq_factor": (float, 1e-6),
    "original_max_position_embeddings": (int, 2),
    "beta_fast": (float, 0),
    "beta_slow": (float, 0),
    "attention_factor": (float, 1e-6),
    "mscale": (float, 0),
    "mscale_all_dim": (float, 0),
    "truncate": (bool, 0),
    "partial_rotary_factor": (float, 0),
    "short_factor": (list[float], 1e-6),
    "long_factor": (list[float], 1e-6),
}
"""Parameter of a rope scaling -> its type and smallest value."""


def check_values(config: Any, hints: Mapping[str, Any]) -> None:
    """Checks each field by itself, and the number of modules.

    Args:
        hints: type of each field.

    Raises:
        UserError: one is of another type, or out of the range that any model needs.
    """
    for name, kind in hints.items():
        value = getattr(config, name)
        if problem := misfit(kind, value):
            raise UserError(f"{shown(config.name)}: {name}={shown(value)} {problem}")
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if value is not None and not isinstance(value, str | dict | list) and not low <= value <= high:
            raise UserError(f"{config.name}: {name}={shown(value)} is not between {low:,} and {high:,}")
    for name in ("sliding_layers", "unrotated_layers", "dense_layers", "mlp_layers"):
        layers = getattr(config, name) or ()
        if len(layers) > RANGES["n_layer"][1] or min(layers, default=0) < 0:
            raise UserError(f"{config.name}: {name}={shown(layers)} is no list of layers, counted from 0")
    if config.mixers is not None and (len(config.mixers) != config.n_layer or set(config.mixers) - set(_MIXERS)):
        kinds = ", ".join(_MIXERS)
        raise UserError(f"{config.name}: mixers={shown(config.mixers)} is not one of {kinds} for each layer")
    if config.mixers is not None and "delta" in config.mixers:
        heads = config.delta_key_heads, config.delta_value_heads
        if not min(*heads, config.delta_key_size, config.delta_value_size, config.conv_size) or heads[1] % heads[0]:
            raise UserError(f"{config.name}: the heads of the gated delta rule are {heads}, which is impossible")
    if config.mixers is not None and "mamba2" in config.mixers:
        sizes = config.ssm_heads, config.ssm_groups, config.ssm_head_size, config.ssm_state_size
        if not min(*sizes, config.conv_size) or sizes[0] % sizes[1]:
            raise UserError(f"{config.name}: the heads, groups and sizes of Mamba-2 are {sizes}, which is impossible")


def check_heads_and_experts(config: Any) -> None:
    """Checks that heads come in whole groups and rotate in pairs, and how many experts there are for a token."""
    if config.n_head % config.n_query_groups:
        raise UserError(
            f"{config.name}: n_head={config.n_head} is not a multiple of n_query_groups={config.n_query_groups}"
        )
    if config.rope_n_elem % 2:
        raise UserError(
            f"{config.name}: rotary_percentage={config.rotary_percentage} of head_size={config.head_size} "
            f"is {config.rope_n_elem} channels, and rotation needs an even number"
        )
    if config.mlp == "moe" and not 0 < config.n_expert_per_token <= config.n_expert:
        raise UserError(
            f"{config.name}: n_expert_per_token={config.n_expert_per_token} of n_expert={config.n_expert} is impossible"
        )


def check_layers(config: Any) -> None:
    """Checks that each layer does something and finds what it takes of another one, and how many experts all have."""
    n_own, slides = config.n_layer - config.kv_shared_layers, [config.is_sliding(i) for i in range(config.n_layer)]
    if config.kv_shared_layers and (n_own < 1 or set(slides[n_own:]) - set(slides[:n_own])):
        raise UserError(
            f"{config.name}: kv_shared_layers={config.kv_shared_layers} of n_layer={config.n_layer} leave a kind of "
            "attention without a layer that has keys and values"
        )
    kinds = [(config.mixer(i), config.mlp_of(i)[0]) for i in range(config.n_layer)]
    if ("none", "none") in kinds:
        raise UserError(f"{config.name}: layer {kinds.index(('none', 'none'))} neither mixes tokens nor has an MLP")
    if config.shared_attention_norm and any("none" in kind for kind in kinds):
        raise UserError(f"{config.name}: an MLP that reads what attention reads needs attention in its layer")
    if (n := sum(mlp == "moe" for _, mlp in kinds)) * config.n_expert > _MAX_EXPERTS:
        raise UserError(
            f"{config.name}: {n} layers times n_expert={config.n_expert} experts are more than {_MAX_EXPERTS:,}"
        )


def check_rope_scaling(config: Any) -> None:
    """Checks the parameters of another rope scaling; raises UserError if one is missing or impossible."""
    if config.rope_scaling is None:
        return
    kind = config.rope_scaling.get("type")
    if not isinstance(kind, str) or kind not in ROPE_SCALINGS:
        raise UserError(f"{config.name}: rope_scaling has type={shown(kind)}, none of {', '.join(ROPE_SCALINGS)}")
    for name, (annotation, least) in _SCALING_VALUES.items():
        value = config.rope_scaling.get(name)
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        if not fits(annotation, value) or any(not least <= x <= _MOST for x in values):
            raise UserError(f"{config.name}: rope_scaling has {name}={shown(value)}, which scales nothing")
        if isinstance(value, list) and len(value) != config.rope_n_elem // 2:
            raise UserError(
                f"{config.name}: rope_scaling has {len(value)} numbers in {name}, and {config.rope_n_elem // 2} pairs "
                "of channels are rotated"
            )
    if missing := [name for name in ROPE_SCALINGS[kind] if config.rope_scaling.get(name) is None]:
        raise UserError(f"{config.name}: rope_scaling of type {kind} lacks {missing[0]}")
    if kind == "llama3" and config.rope_scaling["low_freq_factor"] >= config.rope_scaling["high_freq_factor"]:
        raise UserError(f"{config.name}: rope_scaling has low_freq_factor that is not below high_freq_factor")
