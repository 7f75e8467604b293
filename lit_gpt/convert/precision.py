"""Says in which precision the weights of an export are, and which they had before."""

from collections.abc import Mapping
from pathlib import Path

from lit_gpt.checkpoints.four_bits import Reader
from lit_gpt.convert.quantized.settings import read_settings
from lit_gpt.errors import UserError
from lit_gpt.files import Spec
from lit_gpt.records import read_object


def precision_of(checkpoint_dir: Path, specs: Mapping[str, Spec], get: Reader, kind: str | None = None) -> str:
    """Returns a sentence on the precision of weights that are written anew from a checkpoint.

    Args:
        checkpoint_dir: folder of the checkpoint, whose config.json, if it is there still, says how it was published.
        specs: shapes and dtypes of its tensors.
        get: their reader.
        kind: dtype or type of what is written; None is that of the checkpoint.
    """
    kinds = sorted({kind or str(spec.dtype).removeprefix("torch.") for spec in specs.values()})
    return f"The weights are in {' and '.join(kinds)}{_before(checkpoint_dir, get)}"


def published_as(checkpoint_dir: Path) -> str | None:
    """Returns how the weights of a checkpoint were quantized when it was published; None if they were not."""
    path = checkpoint_dir / "config.json"
    try:
        settings = read_settings(read_object(path), str(path)) if path.is_file() else None
    except UserError:  # of another model: this one was converted
        return None
    return settings and settings.name


def _before(checkpoint_dir: Path, get: Reader) -> str:
    if get.kinds:
        kinds = " and ".join(sorted(set(get.kinds.values())))
        return f"; {len(get.kinds)} of them, in 4 bits ({kinds}) in {checkpoint_dir}, are dequantized"
    name = published_as(checkpoint_dir)
    return f", to which they were dequantized from {name} when {checkpoint_dir} was converted" if name else ""
