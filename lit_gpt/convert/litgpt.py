"""Writes a checkpoint of ours in the layout of litgpt: lit_model.pth, model_config.yaml and the tokenizer's files.

litgpt 0.5.13 reads it: https://github.com/Lightning-AI/litgpt
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lit_gpt.args.folders import LITGPT_CONFIG, WEIGHTS
from lit_gpt.checkpoints.configs import MLPS, RENAMED, SAME
from lit_gpt.config import Config
from lit_gpt.convert.export import copy_tokenizer
from lit_gpt.convert.names import EMBEDDINGS, HEAD, VOCABULARY, fit_rows, is_tied
from lit_gpt.errors import UserError
from lit_gpt.files import Spec, save_stream, write_text

_LACKS = {"embedding_factor": 1.0, "residual_factor": 1.0, "logit_divisor": 1.0, "rotates_first": False}
_LACKS |= {"mixers": None, "attention_gate": False, "attention_sinks": False, "router_bias": False}
_LACKS |= {"router": "softmax", "shared_expert_size": 0, "dense_layers": None, "mlp_layers": None}
_LACKS |= {"plain_experts": False, "value_norm": False, "keys_as_values": False, "layer_scale": False}
_LACKS |= dict.fromkeys(("full_head_size", "full_query_groups", "kv_shared_layers", "per_layer_input_size"), 0)
_LACKS |= {"latent_size": 0}
"""Fields of Config that litgpt has not, with the value that is nothing to it."""


def write_litgpt(
    config: Config,
    specs: Mapping[str, Spec],
    get: Callable[[str], Tensor],
    checkpoint_dir: Path,
    folder: Path,
    dtype: torch.dtype | None,
    rows: int | None,
) -> None:
    """Writes a litgpt checkpoint into `folder`, one tensor at a time.

    Args:
        specs: shape and dtype of each of our tensors.
        get: reads one of our tensors by name.
        dtype: dtype of the written weights; None keeps that of the checkpoint.
        rows: number of rows of the vocabulary's tensors; None keeps all.

    Raises:
        UserError: litgpt does not compute what the model does.
    """
    config = replace(config, padded_vocab_size=rows or config.padded_vocab_size)
    litgpt_config = _litgpt_config(config)
    plan = {}
    for name, (shape, stored) in specs.items():
        shape = (config.padded_vocab_size, *shape[1:]) if name in VOCABULARY else shape
        plan[name] = Spec(shape, dtype or stored)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in specs:
            if not is_tied(name, config):
                yield name, fit_rows(name, get(name), rows).to(plan[name].dtype)

    save_stream(plan, tensors(), folder / WEIGHTS, {HEAD: EMBEDDINGS} if config.tie_embeddings else {})
    write_text(folder / LITGPT_CONFIG, yaml.safe_dump(litgpt_config))
    copy_tokenizer(checkpoint_dir, folder)


def _litgpt_config(config: Config) -> dict[str, Any]:
    """Returns the content of model_config.yaml.

    Raises:
        UserError: litgpt lacks a trait of the model; the message names its field.
    """
    bias = config.mlp_bias
    if config.proj_bias != bias or config.qk_norm == "per_head":
        raise _unlike(config, "qk_norm" if config.qk_norm == "per_head" else "proj_bias")
    if config.unrotated_layers:
        raise _unlike(config, "unrotated_layers")
    lacking = [f for f, default in _LACKS.items() if getattr(config, f) != default]
    if lacking:
        raise _unlike(config, lacking[0])
    renamed = {field: key for key, field in RENAMED.items() if key != "condense_ratio"}
    fields = {k: getattr(config, k) for k in SAME} | {key: getattr(config, k) for k, key in renamed.items()}
    fields = {k: v for k, v in fields.items() if v or k == "parallel_residual"}  # an absent key is off
    org, _, name = config.hf_repo.partition("/")
    return {
        **fields,
        "name": _litgpt_name(config),
        "hf_config": {"org": org, "name": name or config.name, "architecture": config.architecture},
        "norm_class_name": {"layer": "LayerNorm", "rms": "RMSNorm"}[config.norm],
        **_mlp(config),
        "bias": bias,
        "attn_bias": config.qkv_bias and not bias,
        **({"norm_qk": True, "norm_qk_type": "olmo2"} if config.qk_norm == "full" else {}),
        **({"norm_qk": True} if config.qk_norm == "head" else {}),
        "norm_1": config.pre_norm,
        "norm_2": config.pre_norm,
        "post_attention_norm": config.post_norm,
        "post_mlp_norm": config.post_norm,
        **_rope(config),
        **_windows(config),
    }


def _litgpt_name(config: Config) -> str:
    """Returns a name for which litgpt picks the right norm: with "Gemma" in it, the norm that scales by 1 + weight.

    Raises:
        UserError: litgpt would pick another norm by the model's name.
    """
    name = config.name
    if config.norm_unit_offset and "Gemma" not in name:
        return name.replace("gemma", "Gemma") if "gemma" in name else f"Gemma-{name}"
    if (config.norm == "rms" and not config.norm_unit_offset and "Gemma" in name) or (
        config.norm == "layer" and "OLMo" in name
    ):
        raise UserError(f"{name}: litgpt takes a model with this name for one with other norms; give it another name")
    return name


def _mlp(config: Config) -> dict[str, Any]:
    """Returns the class of the MLP and its settings; raises UserError if litgpt has none like it."""
    stated = {"mlp": config.mlp, "activation": config.activation}
    if stated == {"mlp": "plain", "activation": "gelu_tanh"}:
        return {"mlp_class_name": "GptNeoxMLP", "gelu_approximate": "tanh"}
    for name, fields in MLPS.items():
        if fields == stated:
            return {"mlp_class_name": name} | ({"gelu_approximate": "tanh"} if name == "GemmaMLP" else {})
    raise _unlike(config, "activation")


def _rope(config: Config) -> dict[str, Any]:
    """Returns the settings for rotary embeddings: which layers use the local base, and the scaling of the others.

    Raises:
        UserError: litgpt lacks the scaling; its YaRN reverses the ramp of the paper.
    """
    local: dict[str, Any] = {}
    if config.rope_local_base:
        local["rope_indices"] = [int(config.rotation(i) == "local") for i in range(config.n_layer)]
        if config.rope_condense_ratio != 1:  # which would scale both
            local |= {"rope_condense_ratio": 1, "rope_adjustments": {"factor": config.rope_condense_ratio}}
    return local | _scaling_adjustments(config)


def _scaling_adjustments(config: Config) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    if scaling["type"] != "llama3":
        raise _unlike(config, "rope_scaling")
    names = ("factor", "low_freq_factor", "high_freq_factor")
    original = scaling["original_max_position_embeddings"]
    return {"rope_adjustments": {**{k: scaling[k] for k in names}, "original_max_seq_len": original}}


def _windows(config: Config) -> dict[str, Any]:
    if not config.sliding_window:
        return {}
    return {"sliding_window_indices": [int(config.is_sliding(i)) for i in range(config.n_layer)]}


def _unlike(config: Config, field: str) -> UserError:
    return UserError(f"{config.name}: litgpt has no model with {field}={getattr(config, field)!r}; use --format hf")
