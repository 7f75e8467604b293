"""Converts between our Config and the metadata of a gguf file that determine what is computed."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_gpt.config import Config
from lit_gpt.convert.gguf.checking import (
    BASE,
    FACTOR,
    FACTOR_OR_NONE,
    LENGTH,
    PATTERN,
    SIZE,
    SIZE_OR_NONE,
    TEXT,
    TRUTH,
    check_factors,
    check_matrix,
    check_values,
)
from lit_gpt.convert.gguf.layouts import LAYOUTS, Layout, every, unlike
from lit_gpt.convert.gguf.parts import AGAIN
from lit_gpt.convert.gguf.scaling import OLD_FACTOR, SCALING, SCALING_KINDS, scaling_from_metadata, scaling_to_metadata
from lit_gpt.errors import UserError, shown
from lit_gpt.families import ARCHITECTURES
from lit_gpt.layers.self_attention import score_scale

_KEYS = {  # field of Config -> key below the architecture's name
    "n_layer": "block_count",
    "block_size": "context_length",
    "n_embd": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "n_head": "attention.head_count",
    "n_query_groups": "attention.head_count_kv",
    "rope_base": "rope.freq_base",
    "n_expert": "expert_count",
    "n_expert_per_token": "expert_used_count",
    "rope_local_base": "rope.freq_base_swa",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_MULTIPLIERS = {"embedding_factor": "embedding_scale", "residual_factor": "residual_scale"}
_MULTIPLIERS |= {"logit_divisor": "logit_scale"}
_SCORES = "attention.scale"
_FLOATS = ("rope.freq_base", "rope.freq_base_swa", "attn_logit_softcapping", "final_logit_softcapping")
_EPSILON = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
_PARALLEL, _ROTATED = "use_parallel_residual", "rope.dimension_count"
_EXPERT_LENGTH = "expert_feed_forward_length"
_HEAD = ("attention.key_length", "attention.value_length")
_WITHOUT_EFFECT = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "attention.causal")
"""Keys that follow from the tensors' shapes, or have only one value in the supported architectures."""
_KINDS = {
    **dict.fromkeys(_KEYS.values(), SIZE),
    **dict.fromkeys((*_EPSILON.values(), *_MULTIPLIERS.values(), _SCORES), FACTOR_OR_NONE),
    **dict.fromkeys((*_HEAD, _ROTATED, _EXPERT_LENGTH), SIZE),
    **dict.fromkeys((_WINDOW, "attention.head_count_kv", "expert_count", "expert_used_count"), SIZE_OR_NONE),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base_swa"), FACTOR_OR_NONE),
    "rope.freq_base": BASE,
    "context_length": LENGTH,
    _PARALLEL: TRUTH,
    _PATTERN: PATTERN,
    OLD_FACTOR: FACTOR,
}
"""What the value of each key has to be, by the key below the architecture's name."""
_DEFAULTS = {"rope_base": 10000.0}
"""Fields whose default in llama.cpp differs from that in config.json."""
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""Number of layers by which llama.cpp recognizes Gemma 27B, whose scores are not scaled by the head size."""


def to_metadata(config: Config) -> dict[str, Any]:
    """Returns the keys below the architecture's name, with their values.

    Raises:
        UserError: llama.cpp does not have the architecture, or would compute something else.
    """
    layout = require_layout(config)
    values: dict[str, Any] = {key: getattr(config, field) for field, key in _KEYS.items() if getattr(config, field)}
    values |= {key: float(values[key]) for key in _FLOATS if key in values}
    values[_EPSILON[config.norm]] = config.norm_eps
    values |= dict.fromkeys(_HEAD, config.head_size) | {_ROTATED: config.rope_n_elem}
    values["vocab_size"] = config.padded_vocab_size
    if layout.multipliers:
        values |= {key: float(getattr(config, field)) for field, key in _MULTIPLIERS.items()}
        values[_SCORES] = score_scale(config)
    if layout.name in ("gptneox", "stablelm"):
        values[_PARALLEL] = config.parallel_residual
    if layout.name == "qwen3moe":
        values[_EXPERT_LENGTH] = config.intermediate_size
    if layout.has_window:
        values[_WINDOW] = config.sliding_window
    if config.sliding_window and not layout.hides:  # up to this length the window masks nothing
        values["context_length"] = min(config.block_size, config.sliding_window)
    return values | scaling_to_metadata(config, layout)


def require_layout(config: Config) -> Layout:
    """Returns the layout of a model's architecture; raises UserError if llama.cpp lacks it or a trait of the model."""
    if config.architecture not in LAYOUTS:
        if config.architecture:
            raise UserError(
                f"{config.name}: gguf files of {config.architecture} models are not written; use --format hf"
            )
        raise UserError(f"{config.name}: llama.cpp has no unnamed architecture")
    layout = LAYOUTS[config.architecture]
    traits = ARCHITECTURES[config.architecture].traits
    for name in ("qkv_bias", "proj_bias", "mlp_bias", "lm_head_bias"):
        if getattr(config, name) != traits.get(name, False) and name not in layout.biases:
            raise unlike(config, name)
    if layout.head == "tied" and not config.tie_embeddings:
        raise unlike(config, "tie_embeddings")
    period = layout.windowless if layout.rotates_windows and config.sliding_window else layout.unrotated
    if (config.unrotated_layers or []) != every(period, config.n_layer):
        raise unlike(config, "unrotated_layers")
    local_bases = {"none": 0.0, "same": config.rope_base, "own": config.rope_local_base}
    if config.rope_local_base != local_bases[layout.local_base]:
        raise unlike(config, "rope_local_base")
    if config.architecture in _LAYERS_OF_27B and config.query_pre_attn_scalar != _scalar_of_gemma(config):
        raise unlike(config, "query_pre_attn_scalar")
    if config.architecture == "gemma3" and not config.sliding_window:
        raise unlike(config, "sliding_window")
    without = [i for i in range(config.n_layer) if not config.is_sliding(i)]
    if layout.hides and config.sliding_window and without != every(layout.windowless, config.n_layer):
        raise unlike(config, "sliding_layers")
    if layout.window_of and config.sliding_window != dict([layout.window_of]).get(config.n_layer, 0):
        raise unlike(config, "sliding_window")
    if layout.narrow and config.n_head * config.head_size != config.n_embd:
        raise unlike(config, "head_size")
    stated = () if layout.multipliers else _MULTIPLIERS
    if changed := [field for field in stated if getattr(config, field) != 1]:
        raise unlike(config, changed[0])
    return layout


def _scalar_of_gemma(config: Config) -> int:
    """Returns the `query_pre_attn_scalar` that llama.cpp uses for a Gemma 2 or 3."""
    is_27b = config.n_layer == _LAYERS_OF_27B[config.architecture]
    return config.n_embd // config.n_head if is_27b else config.head_size


def from_metadata(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], factors: Mapping[str, list[float]], path: Path
) -> Config:
    """Returns the Config that a file describes.

    Args:
        metadata: all keys with their values.
        shapes: shape of each tensor, by its name in the file.
        factors: values of the tensors of `rope_tensors`.

    Raises:
        UserError: the architecture or a key is unknown, or a key is missing.
    """
    check_values(metadata, {"general.architecture": TEXT, "general.name": TEXT}, f"{path}: ")
    if "general.architecture" not in metadata:
        raise UserError(f"{path} does not name its architecture (general.architecture); {AGAIN}")
    kind = metadata["general.architecture"]
    values = {k.removeprefix(f"{kind}."): v for k, v in metadata.items() if k.startswith(f"{kind}.")}
    values = {k: _one_for_all_layers(v, f"{path}: {kind}.{k}") if k != _PATTERN else v for k, v in values.items()}
    # a float32 such as 1e-5 comes back with the digits of a float64; config.json has the short ones
    values = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
    check_values(values, _KINDS | SCALING_KINDS, f"{path}: {kind}.")
    architecture = _find_architecture(kind, values, shapes, path)
    epsilon = _EPSILON[ARCHITECTURES[architecture].traits["norm"]]
    known = {
        *_KEYS.values(),
        *_MULTIPLIERS.values(),
        _SCORES,
        epsilon,
        *_HEAD,
        _WINDOW,
        _PATTERN,
        _PARALLEL,
        _ROTATED,
        _EXPERT_LENGTH,
        OLD_FACTOR,
    }
    if unknown := [k for k in values if k not in {*known, *_WITHOUT_EFFECT} and not k.startswith(SCALING)]:
        value = shown(values[unknown[0]])
        raise UserError(f"{path}: {kind}.{unknown[0]}={value} is not a field this toolkit knows")
    needed = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
    is_mixture = values.get("expert_count") or ARCHITECTURES[architecture].traits.get("mlp") == "moe"
    needed += (epsilon, *(("expert_count", "expert_used_count") if is_mixture else ()))
    if missing := [k for k in needed if not values.get(k)]:
        raise UserError(f"{path} has no {kind}.{missing[0]}; {AGAIN}")
    _check_layers(values, shapes, path)
    fields = _fields_of_metadata(architecture, values, shapes)
    fields["norm_eps"] = values[epsilon]
    if any(values.get(key, fields["head_size"]) != fields["head_size"] for key in _HEAD):
        raise UserError(f"{path}: {_HEAD[0]}={values.get(_HEAD[0])} is not the size of a head, {fields['head_size']}")
    if architecture == "gemma3" and fields.get("final_logit_softcapping"):
        raise UserError(f"{path}: a gemma3 model with final_logit_softcapping is not supported")
    try:
        config = Config(
            name=str(metadata.get("general.name", path.stem)),
            architecture=architecture,
            vocab_size=fields["padded_vocab_size"],
            **fields,
        )
    except UserError as e:
        raise UserError(f"{path}: {e}; {AGAIN}") from e
    if architecture in _LAYERS_OF_27B:
        config.query_pre_attn_scalar = _scalar_of_gemma(config)
    check_factors(factors, config.rope_n_elem // 2, path)
    return replace(config, **scaling_from_metadata(config, values, factors, path))


def _check_layers(values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Checks that the layers' pattern and the numbers of heads and rotated channels are possible.

    Raises:
        UserError: they are not.
    """
    n, heads, pattern = values["block_count"], values["attention.head_count"], values.get(_PATTERN)
    if isinstance(pattern, list) and len(pattern) != n:
        raise UserError(f"{path}: {_PATTERN} has {len(pattern)} entries for {n} layers; {AGAIN}")
    groups = values.get("attention.head_count_kv") or heads
    check_matrix(shapes, "token_embd.weight", path)
    fused = "blk.0.attn_qkv.weight"
    name, parts = (fused, heads + 2 * groups) if fused in shapes else ("blk.0.attn_q.weight", heads)
    rows, _ = check_matrix(shapes, name, path)
    if rows % parts or heads % groups:
        raise UserError(
            f"{path}: {name!r} has {rows} rows, which are not those of {heads} heads, {groups} with keys; {AGAIN}"
        )
    rotated = values.get(_ROTATED, rows // parts)
    if rotated % 2 or rotated > rows // parts:
        raise UserError(f"{path}: {_ROTATED}={rotated} channels of a head of {rows // parts} cannot rotate; {AGAIN}")


def _fields_of_metadata(
    architecture: str, values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Returns the Config fields that a file states, with llama.cpp's defaults for the others."""
    fields = {**ARCHITECTURES[architecture].traits, **_DEFAULTS}
    fields |= {field: values[key] for field, key in _KEYS.items() if key in values}
    fields |= _fields_of_tensors(fields, shapes) | _window(architecture, values)
    fields["padded_vocab_size"] = shapes["token_embd.weight"][0]
    layout = LAYOUTS[architecture]
    without_window = fields.get("sliding_window") and layout.rotates_windows
    period = layout.windowless if without_window else layout.unrotated
    fields["unrotated_layers"] = every(period, fields["n_layer"]) or None
    if layout.multipliers:
        fields |= {field: values[key] for field, key in _MULTIPLIERS.items() if values.get(key)}
        fields["query_pre_attn_scalar"] = values[_SCORES] ** -2 if values.get(_SCORES) else 0.0
    head_size = fields["head_size"]
    fields["rotary_percentage"] = _part(values.get(_ROTATED, head_size), head_size)
    if architecture == "qwen3_moe":
        alike = fields["intermediate_size"] // fields["n_expert_per_token"]
        fields["intermediate_size"] = values.get(_EXPERT_LENGTH) or alike
    if architecture == "olmo3":
        fields["rope_local_base"] = fields["rope_base"]  # the only one in llama.cpp's code, whatever the file says
    if architecture == "stablelm":
        fields["parallel_residual"] = fields["shared_attention_norm"] = "blk.0.ffn_norm.weight" not in shapes
        fields["qk_norm"] = "per_head" if "blk.0.attn_q_norm.weight" in shapes else "none"
    elif _PARALLEL in values:
        fields["parallel_residual"] = values[_PARALLEL]
    return fields


def _one_for_all_layers(value: Any, where: str) -> Any:
    """Returns the value of a key that may list one for each layer; raises UserError if layers differ."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise UserError(f"{where} differs between layers ({shown(value)}), which this toolkit's models cannot")
    return value[0]


def _find_architecture(kind: str, values: Mapping[str, Any], shapes: Mapping[str, Any], path: Path) -> str:
    """Returns the name of our architecture for a file; raises UserError if there is none."""
    candidates = [architecture for architecture, layout in LAYOUTS.items() if layout.name == kind]
    if not candidates:
        known = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS.values()))
        raise UserError(f"{path}: gguf files of architecture {shown(kind)} are not read; known are {known}")
    if kind == "llama":
        return "mixtral" if values.get("expert_count") else "llama"
    if kind == "olmo2":
        return "olmo3" if values.get(_WINDOW) else "olmo2"
    if kind == "falcon":
        if "blk.0.attn_norm_2.weight" in shapes:
            return "falcon-40b"
        heads = values.get("attention.head_count")
        return "falcon" if values.get("attention.head_count_kv", heads) in (1, heads) else "falcon-11b"
    return candidates[0]


def _fields_of_tensors(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the Config fields that follow from which tensors exist, and from their shapes."""
    n_head = fields["n_head"]
    groups = fields.get("n_query_groups") or n_head
    if "blk.0.attn_qkv.weight" in shapes:
        head_size = shapes["blk.0.attn_qkv.weight"][0] // (n_head + 2 * groups)
    elif "blk.0.attn_q.weight" in shapes:
        head_size = shapes["blk.0.attn_q.weight"][0] // n_head
    else:
        head_size = 0
    return {
        "head_size": head_size,
        "qkv_bias": "blk.0.attn_qkv.bias" in shapes or "blk.0.attn_q.bias" in shapes,
        "proj_bias": "blk.0.attn_output.bias" in shapes,
        "mlp_bias": "blk.0.ffn_down.bias" in shapes,
        "lm_head_bias": "output.bias" in shapes,
        "tie_embeddings": "output.weight" not in shapes,
    }


def _window(architecture: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the Config fields of the sliding window.

    llama.cpp ignores the key for architectures without a window.
    """
    layout, n = LAYOUTS[architecture], values["block_count"]
    size = values.get(_WINDOW, 4096 if architecture == "gemma2" else 0) if layout.has_window else 0
    pattern = values.get(
        _PATTERN, layout.windowless
    )  # a list of which layers have it, or the period of those that do not
    without = [i for i, has in enumerate(pattern) if not has] if isinstance(pattern, list) else every(pattern, n)
    layers = [i for i in range(n) if i not in without] if size and without else None
    return {"sliding_window": size, "sliding_layers": layers}


def _part(n: int, of: int) -> float:
    """Returns the smallest fraction of `of` that is not rounded down to less than `n`."""
    fraction = n / of
    return fraction if int(fraction * of) == n else math.nextafter(fraction, 2.0)
