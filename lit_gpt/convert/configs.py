"""Converts between Hugging Face's config.json and our Config; refuses what would compute something else."""

from typing import Any, get_origin

from lit_gpt.config import HINTS, Config
from lit_gpt.convert.quantized.settings import read_settings, without_settings
from lit_gpt.errors import UserError, shown
from lit_gpt.families import ARCHITECTURES, MODELS
from lit_gpt.families.family import Architecture
from lit_gpt.families.wrappers import unwrapped
from lit_gpt.limits import RANGES, ROPE_SCALINGS
from lit_gpt.records import misfit, require_types

_MODEL_KEYS = """
    _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled _name_or_path activation
    architectures attention_dropout attention_probs_dropout_prob attn_implementation auto_map bos_token_id
    chunk_size_feed_forward classifier_dropout custom_pipelines dtype embd_pdrop eos_token_id finetuning_task
    gradient_checkpointing hidden_dropout hidden_dropout_prob id2label initializer_range is_decoder
    is_encoder_decoder is_llama_config keys_to_ignore_at_inference label2id license max_sequence_length
    model_type output_attentions output_hidden_states output_router_logits pad_token_id prefix pretraining_tp
    problem_type pruned_heads resid_pdrop residual_dropout return_dict router_aux_loss_coef router_jitter_noise
    sep_token_id
    task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript transformers.js_config
    transformers_version type_vocab_size unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict
"""
_GENERATION_KEYS = """
    _from_model_config assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight
    assistant_lookbehind bad_words_ids begin_suppress_tokens cache_config cache_implementation compile_config
    constraints continuous_batching_config decoder_start_token_id disable_compile diversity_penalty do_sample
    dola_layers early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_eos_token_id guidance_scale
    is_assistant length_penalty low_memory max_cache_len max_length max_matching_ngram_size max_new_tokens
    max_time min_length min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens
    num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences output_logits output_scores
    penalty_alpha prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values renormalize_logits
    repetition_penalty return_dict_in_generate sequence_bias speculation_type stop_strings suppress_tokens
    target_lookbehind temperature token_healing top_h top_k top_p typical_p use_mtp watermarking_config
"""
"""Generation settings, which older versions of transformers kept in config.json, too."""
WITHOUT_EFFECT = frozenset([*_MODEL_KEYS.split(), *_GENERATION_KEYS.split()])
"""Keys that do not change what the forward pass of a finetuned or evaluated model computes, unless the table of an
architecture lists one (Falcon's `activation`)."""
NEEDED_ON = frozenset(["causal", "is_causal", "rotary", "use_rope", "use_rotary"])
"""Switches for what every model here does, which must not be off. Any other unknown switch may be off."""

_STATED = ("n_layer", "n_head", "n_embd", "intermediate_size", "block_size", "padded_vocab_size", "norm_eps")
"""Config fields that config.json has to give, since no default holds for every model."""


_TRANSLATED_KEYS = ("mixers", "mlp", "mlp_layers", "dense_layers", "dense_size", "plain_experts")
_TRANSLATED_KEYS += ("sliding_layers", "unrotated_layers", "rope_local_base")
"""Keys that `Architecture.adapt` adds, which config.json expresses in other ways."""


def config_from_hf(hf: dict[str, Any], name: str, where: str) -> Config:
    """Returns the Config of the model that config.json describes.

    Args:
        hf: the parsed config.json.
        name: the name to give the model.
        where: path of the file, for messages.

    Raises:
        UserError: the architecture, one of its fields, or how the weights are quantized is not supported; the message
            names it.
    """
    read_settings(hf, where)
    hf, wrapper = unwrapped(without_settings(hf))
    architecture = find_architecture(hf, where)
    hf = {**(architecture.text_defaults if wrapper else {}), **hf}
    fields = dict(architecture.traits)
    _check_types(architecture, hf, where)
    hf = architecture.adapt({k: v for k, v in hf.items() if v is not None or not _is_number(architecture, k)})
    _check_types(architecture, hf, where)
    for key, value in hf.items():
        if key in architecture.config_keys:
            if value is not None:  # null stands for the default, e.g. head_dim
                fields |= dict.fromkeys(_fields_of(architecture, key), value)
        elif key in architecture.config_values:
            if value not in architecture.config_values[key]:
                raise UserError(f"{where}: {key}={shown(value)} is not supported for {architecture.name} models")
        elif not (key in WITHOUT_EFFECT or key in ROPE or _is_off(key, value)):
            raise UserError(
                f"{where}: {shown(key)[1:-1]}={shown(value)} is not a field this toolkit knows for {architecture.name} "
                "models"
            )
    for key in architecture.config_keys:
        if any(f in _STATED and f not in fields for f in _fields_of(architecture, key)):
            raise UserError(f"{where} has no {key!r}: it does not describe a whole {architecture.name} model")
    fields |= _rope_fields(hf, where)
    fields["block_size"] = max(
        fields["block_size"], hf.get("max_sequence_length") or 0
    )  # Vicuna 16k states its length there
    require_types(where, fields, HINTS)
    known = MODELS.get(name, {})
    if known.get("architecture") != architecture.name:
        known = {}
    return Config(
        name=name,
        hf_repo=known.get("hf_repo", ""),
        architecture=architecture.name,
        wrapper=wrapper,
        vocab_size=known.get("vocab_size") or fields["padded_vocab_size"],
        **fields,
    )


def _is_off(key: str, value: Any) -> bool:
    """Returns whether the value of an unknown key says that a feature is off: null, false or an empty collection."""
    return value is None or value in ({}, []) or (value is False and key not in NEEDED_ON)


def config_to_hf(config: Config) -> dict[str, Any]:
    """Returns the fields of config.json that determine the computation; the inverse of `config_from_hf`."""
    if config.architecture not in ARCHITECTURES:
        raise UserError(f"{config.name} is of no architecture that others know; name one in its lit_config.json")
    architecture = ARCHITECTURES[config.architecture]
    hf: dict[str, Any] = {
        "architectures": [architecture.hf_class],
        "model_type": architecture.model_type or architecture.name,
    }
    hf |= {key: getattr(config, _fields_of(architecture, key)[0]) for key in architecture.config_keys}
    hf |= {key: values[0] for key, values in architecture.config_values.items()}
    hf |= {"rope_theta": config.rope_base, "partial_rotary_factor": config.rotary_percentage}
    if config.rope_condense_ratio != 1:
        hf["rope_scaling"] = {"rope_type": "linear", "type": "linear", "factor": config.rope_condense_ratio}
    if config.rope_scaling:
        hf["rope_scaling"] = {"rope_type": config.rope_scaling["type"], **config.rope_scaling}
    if config.rope_local_base:  # transformers 5 has no other key for it in OLMo 3; older versions have a single base
        hf["rope_parameters"] = {
            "full_attention": {"rope_type": "default", "rope_theta": config.rope_base, **hf.get("rope_scaling", {})},
            "sliding_attention": {"rope_type": "default", "rope_theta": config.rope_local_base},
        }
        if (config.rope_scaling or {}).get("type") == "proportional":  # which no version has by itself
            del hf["rope_scaling"], hf["rope_parameters"]["full_attention"]["type"]
    restored = architecture.restore(config)
    hf |= restored
    return {k: v for k, v in hf.items() if k not in _TRANSLATED_KEYS and (v is not None or k in restored)}


def _check_types(architecture: Architecture, hf: dict[str, Any], where: str) -> None:
    """Checks that each value has the type of our field and is a possible size; raises UserError if not."""
    for key in hf.keys() & (architecture.config_keys.keys() | architecture.other_types.keys() | _NUMBERS.keys()):
        value, field = hf[key], next(iter(_fields_of(architecture, key)), "")
        kind = architecture.other_types.get(key) or _NUMBERS.get(key) or HINTS[field]
        # what `adapt` makes of theirs, or will make
        if value is None or (get_origin(kind) and key not in architecture.other_types):
            continue
        if problem := misfit(kind, value):
            raise UserError(f"{where}: {key}={shown(value)} {problem}")
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        low, high = RANGES.get(field, (0, _LARGEST))
        if not low <= value <= high or (value == 0 and field in _STATED):
            raise UserError(
                f"{where}: {key}={shown(value)} is not the size of a model; the largest that is taken is {high:,}"
            )
    for key in _PER_LAYER:
        stated = hf.get(key)
        if stated is None or stated == []:
            continue
        entries = stated if isinstance(stated, list) and all(isinstance(x, str | int) for x in stated) else []
        if not entries or len(entries) < (hf.get("num_hidden_layers") or 0):
            raise UserError(f"{where}: {key}={shown(stated)} is not a list with an entry for each layer")
    for key in _ROPE_OBJECTS:
        if not isinstance(hf.get(key) or {}, dict):
            raise UserError(
                f"{where}: {key}={shown(hf[key])} is not an object with the kind of scaling and its parameters"
            )


def _is_number(architecture: Architecture, key: str) -> bool:
    """Returns whether the value of a key is a number, for which null is as good as nothing."""
    return key in _NUMBERS or any(field in _STATED for field in _fields_of(architecture, key))


def _fields_of(architecture: Architecture, key: str) -> tuple[str, ...]:
    """Returns our Config fields that a key of config.json sets."""
    fields = architecture.config_keys.get(key, ())
    return (fields,) if isinstance(fields, str) else fields


def find_architecture(hf: dict[str, Any], where: str) -> Architecture:
    """Returns the architecture that config.json names; raises UserError if it is unknown."""
    classes = hf.get("architectures") or []
    kind = hf.get("model_type")
    require_types(
        where, {"architectures": classes, "model_type": kind}, {"architectures": list[str], "model_type": str | None}
    )
    for a in ARCHITECTURES.values():
        named = bool({a.hf_class, *a.other_classes} & set(classes)) if classes else kind == (a.model_type or a.name)
        if named and all(hf.get(key) in values for key, values in a.when.items()):
            return a
    stated = shown(classes[0] if classes else kind or "no architecture")[1:-1]
    known = ", ".join(dict.fromkeys(a.hf_class for a in ARCHITECTURES.values()))
    raise UserError(f"{where}: {stated} is not an architecture this toolkit knows; known are {known}")


ROPE = (
    "rope_theta",
    "rotary_emb_base",
    "rotary_pct",
    "partial_rotary_factor",
    "rope_scaling",
    "rope_parameters",
)
"""Keys of config.json for rotary embeddings."""
_NUMBERS = {"max_sequence_length": int, "max_window_layers": int, "no_rope_layer_interval": int}
_NUMBERS |= {"sliding_window_pattern": int, "_sliding_window_pattern": int}
_NUMBERS |= dict.fromkeys(ROPE[:4], float)
"""Type of the values of keys that are not in an architecture's table."""
_ROPE_OBJECTS = ROPE[4:]
_LARGEST = 10**15
"""Largest number for a key that sets none of our fields."""
_PER_LAYER = ("layer_types", "layers_block_type", "no_rope_layers")
"""Keys whose value is a list with an entry for each layer."""


def _rope_fields(hf: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns our Config fields for rotary embeddings.

    They are read from `rope_scaling` and related keys or, since transformers 5, from `rope_parameters`.

    Raises:
        UserError: the kind of scaling is not supported, or lacks a parameter.
    """
    hf, fields = _split_by_kind(hf, where)
    rope: dict[str, Any] = {}
    kinds = []
    for key in ("rope_scaling", "rope_parameters"):
        stated = hf.get(key) or {}
        rope |= {key: value for key, value in stated.items() if key not in ("rope_type", "type")}
        kinds.append(stated.get("rope_type", stated.get("type")))
    kind = next((k for k in kinds if k not in (None, "default")), "default")
    if not isinstance(kind, str):
        raise UserError(f"{where}: rope scaling of type {shown(kind)} is not supported")
    share = {"partial_rotary_factor": rope.pop("partial_rotary_factor", 1.0)} if kind == "proportional" else {}
    for field, keys in (
        ("rope_base", ("rope_theta", "rotary_emb_base")),
        ("rotary_percentage", ("partial_rotary_factor", "rotary_pct")),
    ):
        values = [v for key in keys for v in (rope.pop(key, None), hf.get(key)) if v is not None]
        if values:
            fields[field] = values[0]
    if kind == "su" or (kind == "yarn" and "long_factor" in rope):
        kind = "longrope"  # its first names in Phi 3's config.json
    needed = {**ROPE_SCALINGS, "linear": ("factor",)}.get(kind, ())
    if missing := [key for key in needed if rope.get(key) is None]:
        raise UserError(f"{where}: rope scaling of type {kind!r} lacks {missing[0]!r}")
    if kind == "linear":
        fields["rope_condense_ratio"] = rope["factor"]
    elif kind in ROPE_SCALINGS:
        fields["rope_scaling"] = {"type": kind, **rope, **share}
    elif kind != "default":
        raise UserError(f"{where}: rope scaling of type {shown(kind)} is not supported")
    return fields


def _split_by_kind(hf: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits `rope_parameters` that differ between layers with and without a sliding window (Gemma 3, OLMo 3).

    Returns config.json with the parameters of the layers without a window, and our Config field for the others.

    Raises:
        UserError: the layers with a window have scaled rotary embeddings.
    """
    stated = hf.get("rope_parameters")
    if not isinstance(stated, dict) or not stated.keys() & {"full_attention", "sliding_attention"}:
        return hf, {}
    sliding = stated.get("sliding_attention") or {}
    base = sliding.get("rope_theta", 0.0) if isinstance(sliding, dict) else None
    if not isinstance(base, (int, float)) or any(sliding[k] != "default" for k in sliding.keys() - {"rope_theta"}):
        raise UserError(f"{where}: rope_parameters with sliding_attention={shown(sliding)} are not supported")
    full = stated.get("full_attention") or {}
    if not isinstance(full, dict):
        raise UserError(f"{where}: rope_parameters with full_attention={shown(full)} are not supported")
    fields = {"rope_local_base": base} if base else {}
    return {**hf, "rope_parameters": full}, fields
