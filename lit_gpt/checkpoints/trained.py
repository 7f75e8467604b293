"""The file in a run's folder that holds the trained weights, without the base model's."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.files import Later, Spec, load_state, save_state
from lit_gpt.files.checksums import require_intact
from lit_gpt.methods import trained_parameters
from lit_gpt.model import GPT

CHECKPOINTS, BEST = "checkpoints", "best"
"""Names in a run's folder: the folder of the checkpoints it resumes from, and the link to the best of them."""


def trained_path(run_dir: Path, method: str) -> Path:
    """Returns the file in which a run of this method keeps its weights, named as in Lit-GPT."""
    kind = {"adapter_v2": "_adapter", "full": ""}.get(method, f"_{method}")
    return run_dir / f"lit_model{kind}_finetuned.pth"


def save_trained(trained: GPT | Mapping[str, Tensor | Later], path: Path) -> None:
    """Saves the parameters of a model that require a gradient, or what `trained_parameters` returns of it."""
    save_state(trained_parameters(trained) if isinstance(trained, GPT) else dict(trained), path)


def load_trained(path: Path) -> dict[str, Tensor]:
    """Returns the trained weights in a file, after comparing them with the file's checksums.

    Raises:
        UserError: the file is missing or damaged.
    """
    if path.is_file():
        require_intact(path, "the finetune script")
    return load_state(path, "the finetune script")


def check_fit(found: Mapping[str, Tensor | Spec], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Checks that both have the same tensor names with the same shapes.

    Raises:
        UserError: they differ; the message names the first tensor.
    """
    for name in sorted(found.keys() ^ wanted.keys())[:1]:
        raise UserError(f"{path} {'lacks' if name in wanted else 'has an unexpected'} {name}; it is of another model")
    for name, x in found.items():
        if x.shape != wanted[name].shape:
            raise UserError(f"{path}: {name} has shape {list(x.shape)}, the model needs {list(wanted[name].shape)}")
