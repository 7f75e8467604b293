"""Checks by its config.json whether a model can be converted, before its weights are downloaded."""

from collections.abc import Sequence
from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.records import read_object

_SIZES = ("hidden_size", "n_embd", "d_model")
"""Keys of config.json, one of which is there if it describes a whole model."""
_WAY_OUT = "; docs/add_a_family.md says how to add a model, and --any_model true downloads this one all the same"


def check_supported(config_file: Path, repo_id: str, base_models: Sequence[str] = ()) -> None:
    """Checks that a model can be converted; raises UserError if not.

    Args:
        config_file: the model's config.json.
        base_models: models that its page names as what it was made from.

    Raises:
        UserError: the architecture, one of its fields, or how the weights are quantized is not supported.
    """
    from lit_gpt.convert.configs import config_from_hf, find_architecture  # slow to import
    from lit_gpt.convert.quantized.settings import read_settings
    from lit_gpt.families.wrappers import unwrapped

    try:
        hf = read_object(config_file)
    except UserError:
        return  # the conversion reports what is wrong with it
    if not hf.keys() & {"architectures", "model_type"}:
        return
    try:
        read_settings(hf, "its config.json")
    except UserError as e:
        made_from = f" (it was made of {' or '.join(base_models)})" if base_models else ""
        raise UserError(f"{repo_id} is not read, and its weights were not downloaded: {e}{made_from}") from e
    try:
        text = unwrapped(hf)[0]
        find_architecture(text, "its config.json")
        if text.keys() & set(_SIZES):
            config_from_hf(hf, repo_id.rpartition("/")[2], "its config.json")
    except UserError as e:
        raise UserError(f"{repo_id} cannot be converted, and its weights were not downloaded: {e}{_WAY_OUT}") from e
