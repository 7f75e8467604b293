"""Configurations of checkpoints in the layouts of Lit-GPT: ours, that of 2023 and today's litgpt's model_config.yaml.

They are read without torch: data are prepared by processes that do not import it, which takes 0.2 GB and seconds.
"""

from pathlib import Path
from typing import Any

from lit_gpt.args.folders import CONFIG, LITGPT_CONFIG
from lit_gpt.config import HINTS, Config
from lit_gpt.errors import UserError, shown
from lit_gpt.records import read_object, read_yaml, require_types

_FOREIGN = ("_norm_class", "norm_class_name")
"""Keys by which the configurations of the other layouts are told from ours."""

SAME = [
    "name",
    "block_size",
    "vocab_size",
    "padding_multiple",
    "padded_vocab_size",
    "n_layer",
    "n_head",
    "head_size",
    "n_embd",
    "n_query_groups",
    "intermediate_size",
    "norm_eps",
    "parallel_residual",
    "shared_attention_norm",
    "rotary_percentage",
    "rope_base",
    "rope_condense_ratio",
    "n_expert",
    "n_expert_per_token",
    "lm_head_bias",
    "scale_embeddings",
    "final_logit_softcapping",
]
"""Configuration fields that mean the same in all three layouts."""
RENAMED = {
    "condense_ratio": "rope_condense_ratio",
    "attention_scores_scalar": "query_pre_attn_scalar",
    "attention_logit_softcapping": "attn_logit_softcapping",
    "sliding_window_size": "sliding_window",
    "rope_local_base_freq": "rope_local_base",
}
"""Fields of the other layouts -> ours."""
_READ = [
    "org",
    "hf_config",
    "_norm_class",
    "norm_class_name",
    "_mlp_class",
    "mlp_class_name",
    "gelu_approximate",
    "moe_intermediate_size",
    "bias",
    "attn_bias",
    "norm_qk",
    "norm_qk_type",
    "norm_1",
    "norm_2",
    "post_attention_norm",
    "post_mlp_norm",
    "rope_adjustments",
    "sliding_window_indices",
    "rope_indices",
]
"""Fields of other layouts that `translated` converts by hand."""
_INACTIVE = (None, False, 0, 1.0, [], {})
"""Values at which a litgpt field that we do not know changes nothing."""
MLPS = {
    "GptNeoxMLP": {"mlp": "plain", "activation": "gelu"},
    "LLaMAMLP": {"mlp": "gated", "activation": "silu"},
    "GemmaMLP": {"mlp": "gated", "activation": "gelu_tanh"},
    "LLaMAMoE": {"mlp": "moe", "activation": "silu"},
}
_NORMS = {"LayerNorm": "layer", "RMSNorm": "rms"}
_KINDS: dict[str, Any] = dict.fromkeys(("mlp_class_name", "_mlp_class"), str | None)
_KINDS |= dict.fromkeys(("norm_class_name", "_norm_class"), str | None)
_KINDS |= {"name": str, "bias": bool, "norm_1": bool, "hf_config": dict[str, Any] | None}
_KINDS |= {"rope_adjustments": dict[str, Any] | None, "sliding_window_indices": list[Any] | None}
"""Types of the values that `translated` looks into."""


def read_config(checkpoint_dir: Path) -> Config:
    """Returns the configuration of a checkpoint in any of the layouts.

    Raises:
        UserError: the configuration is missing, damaged, or one that we do not compute.
    """
    path = checkpoint_dir / CONFIG
    if not path.is_file() and (checkpoint_dir / LITGPT_CONFIG).is_file():
        path = checkpoint_dir / LITGPT_CONFIG
    remedy = "run scripts/convert_hf_checkpoint.py again"
    try:
        values = read_yaml(path, remedy) if path.suffix == ".yaml" else read_object(path, remedy)
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e}); {remedy}") from e
    if any(key in values for key in _FOREIGN):
        return translated(values, path)
    return Config.from_json(path)


def translated(theirs: dict[str, Any], path: Path) -> Config:
    """Returns a configuration of Lit-GPT 2023 or litgpt as ours.

    Raises:
        UserError: a field that changes the computation and that we do not know; the message names it.
    """
    theirs = {"name": path.parent.name, **theirs}
    require_types(str(path), theirs, _KINDS)
    known = {*SAME, *RENAMED, *_READ}
    for key, value in theirs.items():
        if key not in known and value not in _INACTIVE:
            raise UserError(f"{path}: {shown(key)[1:-1]}={shown(value)} is not a field this toolkit knows")
    fields: dict[str, Any] = {RENAMED.get(k, k): v for k, v in theirs.items() if k in (*SAME, *RENAMED) and v}
    fields |= {key: theirs[key] for key in ("parallel_residual",) if key in theirs}
    mlp = theirs.get("mlp_class_name") or theirs.get("_mlp_class")
    norm = theirs.get("norm_class_name") or theirs.get("_norm_class")
    for key, value, choices in (("mlp_class_name", mlp, MLPS), ("norm_class_name", norm, _NORMS)):
        if value not in choices:
            raise UserError(
                f"{path}: {key}={shown(value)} is none of {', '.join(choices)}, which this toolkit computes"
            )
    fields |= MLPS[str(mlp)]
    if fields["mlp"] == "moe" and theirs.get("moe_intermediate_size"):
        fields["intermediate_size"] = theirs["moe_intermediate_size"]
    if theirs.get("gelu_approximate") == "tanh" and fields["activation"] == "gelu":
        fields["activation"] = "gelu_tanh"
    fields["norm"] = _NORMS[str(norm)]
    fields["norm_unit_offset"] = fields["norm"] == "rms" and "Gemma" in theirs["name"]  # the rule of Lit-GPT and litgpt
    bias = theirs.get("bias", True)
    fields |= {"qkv_bias": bias or bool(theirs.get("attn_bias")), "proj_bias": bias, "mlp_bias": bias}
    if theirs.get("norm_qk"):
        fields["qk_norm"] = "full" if theirs.get("norm_qk_type") == "olmo2" else "head"
    fields["pre_norm"] = theirs.get("norm_1", True)
    fields["post_norm"] = bool(theirs.get("post_attention_norm"))
    fields |= _rotary(theirs.get("rope_adjustments") or {}, path)
    if (windows := theirs.get("sliding_window_indices")) is not None:
        fields["sliding_layers"] = [layer for layer, sliding in enumerate(windows) if sliding]
    require_types(str(path), fields, HINTS)
    config = Config(**{**_origin(theirs), **fields})
    local, windows = theirs.get("rope_indices"), [int(config.is_sliding(i)) for i in range(config.n_layer)]
    if config.rope_local_base and (local != windows or theirs.get("rope_condense_ratio", 1) != 1):
        raise UserError(
            f"{path}: rope_indices={shown(local)} are not the layers with a window, the only ones that rotate so"
        )
    return config


def _rotary(adjustments: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns our fields for litgpt's `rope_adjustments`.

    Raises:
        UserError: they are YaRN's, where litgpt reverses the ramp between the frequencies.
    """
    if "beta_fast" in adjustments or "beta_slow" in adjustments:
        raise UserError(f"{path}: rope_adjustments={shown(adjustments)} is litgpt's YaRN, which is not computed")
    if "low_freq_factor" not in adjustments:
        return {"rope_condense_ratio": adjustments["factor"]} if "factor" in adjustments else {}
    scaling = {k: v for k, v in adjustments.items() if k != "original_max_seq_len"}
    original = adjustments.get("original_max_seq_len")
    return {"rope_scaling": {"type": "llama3", **scaling, "original_max_position_embeddings": original}}


def _origin(theirs: dict[str, Any]) -> dict[str, str]:
    """Returns the model's architecture and hub repository if a family of ours names them; exports need them."""
    from lit_gpt.families import ARCHITECTURES, MODELS  # which no checkpoint of ours needs

    for name in (theirs["name"], (theirs.get("hf_config") or {}).get("name")):
        if isinstance(name, str) and name in MODELS:
            return {key: MODELS[name][key] for key in ("architecture", "hf_repo")}
    stated = (theirs.get("hf_config") or {}).get("architecture")
    return {"architecture": stated} if isinstance(stated, str) and stated in ARCHITECTURES else {}
