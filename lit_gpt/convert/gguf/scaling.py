"""Converts between our scalings of rotary embeddings and the metadata and tensors of a gguf file."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.convert.gguf.checking import FACTOR_OR_NONE, LENGTH, TEXT, TRUTH
from lit_gpt.convert.gguf.layouts import Layout, unlike
from lit_gpt.errors import UserError, shown
from lit_gpt.layers.rope import frequencies, plain

SCALING, OLD_FACTOR = "rope.scaling.", "rope.scale_linear"
_KINDS = ("none", "linear", "yarn", "longrope")
_YARN = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
"""Our parameters of YaRN, by key below `rope.scaling`."""
SCALING_KINDS = {
    **{f"{SCALING}{key}": FACTOR_OR_NONE for key in ("factor", "attn_factor", "yarn_attn_factor")},
    **{f"{SCALING}{key}": FACTOR_OR_NONE for key in ("yarn_beta_fast", "yarn_beta_slow")},
    f"{SCALING}type": TEXT,
    f"{SCALING}finetuned": TRUTH,
    f"{SCALING}original_context_length": LENGTH,
}
"""What the value of each key has to be."""
FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Parameters of all Llama 3.1 to 3.3 models; a file holds only the frequencies that result from them."""


def scaling_to_metadata(config: Config, layout: Layout) -> dict[str, Any]:
    """Returns the keys for the scaling of rotary embeddings; raises UserError if llama.cpp does not support it."""
    if config.rope_condense_ratio != 1:
        return {f"{SCALING}type": "linear", f"{SCALING}factor": float(config.rope_condense_ratio)}
    scaling = config.rope_scaling
    original = (scaling or {}).get("original_max_position_embeddings") or config.block_size
    if scaling is None:
        return {f"{SCALING}original_context_length": original} if layout.name == "phi3" else {}
    if scaling["type"] not in layout.scalings:
        raise unlike(config, "rope_scaling")
    if scaling["type"] == "yarn":
        known = {k: v for k, v in scaling.items() if k in ("type", *_YARN.values())}
        if scaling.keys() - known.keys() - {"attention_factor"} or not _has_same_magnitude(config, known):
            raise unlike(config, "rope_scaling")
        stated = {**scaling, "original_max_position_embeddings": original}
        values = {key: stated[name] for key, name in _YARN.items() if stated.get(name) is not None}
        values |= {key: float(value) for key, value in values.items() if key != "original_context_length"}
        return {SCALING + key: value for key, value in {"type": "yarn", **values}.items()}
    if FREQUENCIES in rope_tensors(config):
        return {}
    kind = {f"{SCALING}type": "longrope"} if layout.name != "phi3" else {}  # phi3 is recognized by its tensors
    return {
        **kind,
        f"{SCALING}original_context_length": original,
        f"{SCALING}attn_factor": frequencies(config)[1],
    }


def _has_same_magnitude(config: Config, scaling: dict[str, Any]) -> bool:
    """Returns whether cos and sin have the same factor as with another scaling."""
    return math.isclose(frequencies(config)[1], frequencies(replace(config, rope_scaling=scaling))[1], rel_tol=1e-5)


def rope_tensors(config: Config) -> dict[str, Tensor]:
    """Returns the tensors of divisors of the frequencies, (rope_n_elem / 2,) each."""
    scaling = config.rope_scaling or {}
    if scaling.get("type") == "llama3":
        return {FREQUENCIES: plain(config) / frequencies(config)[0]}
    if scaling.get("type") != "longrope":
        return {}
    long, short = (torch.tensor(scaling[k], dtype=torch.float32) for k in ("long_factor", "short_factor"))
    if scaling.get("attention_factor") == 1 and long.equal(short):
        return {FREQUENCIES: long}
    return {LONG: long, SHORT: short}


def scaling_from_metadata(
    config: Config, values: Mapping[str, Any], factors: Mapping[str, list[float]], path: Path
) -> dict[str, Any]:
    """Returns the Config fields for the scaling of a file; the inverse of `scaling_to_metadata` and `rope_tensors`.

    A factor without a kind is linear, a kind without a factor scales by 1, and the factor multiplies those of the
    tensors, as in llama.cpp (load_hparams in src/llama-model.cpp, the constructor in src/llama-context.cpp).

    Args:
        config: the configuration without the scaling.

    Raises:
        UserError: the kind of scaling is unknown.
    """
    stated = {k.removeprefix(SCALING): v for k, v in values.items() if k.startswith(SCALING)}
    kind, original = stated.get("type", "linear"), stated.get("original_context_length")
    factor = (stated.get("factor", values.get(OLD_FACTOR)) if kind != "none" else None) or 1.0
    magnitude, is_yarn = stated.get("attn_factor", 1.0), kind == "yarn" and factor != 1
    beyond = stated.keys() - {"type", "finetuned", "attn_factor", "yarn_attn_factor", *_YARN}
    if kind not in _KINDS or (is_yarn and (beyond or factors)):
        raise UserError(f"{path}: rope scaling {shown(stated)} is not supported")
    if is_yarn:
        scaling = {"type": "yarn", **{name: stated[k] for k, name in _YARN.items() if k in stated}, "factor": factor}
        sharpness = stated.get("yarn_attn_factor") or frequencies(replace(config, rope_scaling=scaling))[1]
        return {"rope_scaling": _with_magnitude(config, scaling, sharpness * magnitude)}
    if LONG in factors and FREQUENCIES not in factors:
        long, short = ([factor * f for f in factors[name]] for name in (LONG, SHORT))
        scaling = {"type": "longrope", "long_factor": long, "short_factor": short}
        scaling["original_max_position_embeddings"] = original or config.block_size
        return {"rope_scaling": _with_magnitude(config, scaling, magnitude)}
    if FREQUENCIES in factors or magnitude != 1:
        found = factors.get(FREQUENCIES, [1.0] * (config.rope_n_elem // 2))
        return {"rope_scaling": _scaling_from_factors(config, [factor * f for f in found], magnitude)}
    return {"rope_condense_ratio": factor} if factor != 1 else {}


def _with_magnitude(config: Config, scaling: dict[str, Any], magnitude: float) -> dict[str, Any]:
    """Returns a scaling with the factor of cos and sin added, unless it follows from the other parameters."""
    stated = {**scaling, "attention_factor": magnitude}
    return scaling if _has_same_magnitude(replace(config, rope_scaling=stated), scaling) else stated


def _scaling_from_factors(config: Config, factors: list[float], magnitude: float) -> dict[str, Any]:
    """Returns the scaling that divides the frequencies by `factors`: Llama 3's if it does, else one that lists them."""
    scaling = {"type": "llama3", "factor": float(f"{max(factors):.4g}"), **_LLAMA_3}
    made = rope_tensors(replace(config, rope_scaling=scaling))[FREQUENCIES]
    if magnitude == 1 and torch.allclose(made, torch.tensor(factors), rtol=1e-4, atol=0):
        return scaling
    same = {"long_factor": factors, "short_factor": factors, "attention_factor": magnitude}
    return {"type": "longrope", **same, "original_max_position_embeddings": config.block_size}
