"""Read a Config from Hugging Face's config.json, refusing what would compute something else."""

import json
from pathlib import Path
from typing import Any

from lit_gpt.config import Config
from lit_gpt.errors import UserError
from lit_gpt.families import ARCHITECTURES, MODELS
from lit_gpt.families.family import Architecture

# Keys that do not change what the forward pass computes in a finetuned or evaluated model.
WITHOUT_EFFECT = frozenset(
    [
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "hidden_dropout",
        "hidden_dropout_prob",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "label2id",
        "license",
        "max_sequence_length",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "type_vocab_size",
        "unsloth_version",
        "use_cache",
        "use_return_dict",
    ]
)

STATED = ("n_layer", "n_head", "n_embd", "intermediate_size", "block_size", "padded_vocab_size", "norm_eps")
"""Config fields without a default that holds for every model: config.json has to give them."""


def config_from_hf(hf: dict[str, Any], name: str, where: str) -> Config:
    """The Config of a model that config.json describes.

    Args:
        hf: the parsed config.json.
        name: what the model is to be called.
        where: path of the file, for messages.

    Raises:
        UserError: an architecture we do not have, or a field of it that we do not honour, by name.
    """
    architecture = find_architecture(hf, where)
    fields: dict[str, Any] = {}
    for key, value in {**hf, **rope_fields(hf, where)}.items():
        if key in architecture.config_keys:
            if value is not None:  # null stands for the default, e.g. head_dim
                fields[architecture.config_keys[key]] = value
        elif key in architecture.config_values:
            if value not in architecture.config_values[key]:
                raise UserError(f"{where}: {key}={value!r} is not supported for {architecture.name} models")
        elif key == "rope_condense_ratio":
            fields[key] = value
        elif key not in WITHOUT_EFFECT and key not in ("rope_scaling", "rope_parameters"):
            raise UserError(
                f"{where}: {key}={value!r} is not a field this toolkit knows for {architecture.name} models"
            )
    if missing := [
        theirs for theirs, ours in architecture.config_keys.items() if ours in STATED and ours not in fields
    ]:
        raise UserError(f"{where} has no {missing[0]!r}: it does not describe a whole {architecture.name} model")
    fields["block_size"] = max(fields["block_size"], hf.get("max_sequence_length") or 0)  # 16k Vicunas say it there
    known = MODELS.get(name, {})
    same_model = known.get("architecture") == architecture.name
    vocab_size = known.get("vocab_size") if same_model else None
    return Config(
        name=name,
        hf_repo=known.get("hf_repo", "") if same_model else "",
        architecture=architecture.name,
        **architecture.traits,
        vocab_size=vocab_size or fields["padded_vocab_size"],
        **fields,
    )


def find_architecture(hf: dict[str, Any], where: str) -> Architecture:
    """Raises: UserError with the name that we do not know."""
    classes = hf.get("architectures") or []
    for architecture in ARCHITECTURES.values():
        if architecture.hf_class in classes or (not classes and hf.get("model_type") == architecture.name):
            return architecture
    stated = classes[0] if classes else hf.get("model_type", "no architecture")
    known = ", ".join(a.hf_class for a in ARCHITECTURES.values())
    raise UserError(f"{where}: {stated} is not an architecture this toolkit knows; known are {known}")


def rope_fields(hf: dict[str, Any], where: str) -> dict[str, Any]:
    """rope_theta, rotary_pct and rope_condense_ratio out of `rope_scaling` or, as of transformers 5, `rope_parameters`.

    Raises:
        UserError: a kind of scaling that we do not compute.
    """
    fields: dict[str, Any] = {}
    for rope in (hf.get("rope_parameters") or {}, hf.get("rope_scaling") or {}):
        if "rope_theta" in rope:
            fields["rope_theta"] = rope["rope_theta"]
        if "partial_rotary_factor" in rope:
            fields["rotary_pct"] = rope["partial_rotary_factor"]
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "linear":
            fields["rope_condense_ratio"] = rope["factor"]
        elif kind != "default":
            raise UserError(f"{where}: rope scaling of type {kind!r} is not supported")
    return fields


def read_json(path: Path) -> dict[str, Any]:
    """Raises: UserError if it is not a JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path} is not valid JSON ({e}); download it again") from e
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__} instead of a JSON object")
    return values
