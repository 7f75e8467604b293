"""Base checkpoints: loads a pretrained model from checkpoints/<org>/<name>/ onto the device.

checkpoints/<org>/<name>/  lit_model.pth, lit_config.json, the tokenizer's files     (scripts/convert_hf_checkpoint.py)
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_gpt.args.folders import WEIGHTS
from lit_gpt.checkpoints.four_bits import Reader
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.checkpoints.trained import check_fit
from lit_gpt.config import Config
from lit_gpt.errors import UserError
from lit_gpt.files import Spec
from lit_gpt.files.sums import Summed
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.quantize import quantizable, quantized, require_quantizable
from lit_gpt.layers.quantize.four_bits import FourBits
from lit_gpt.layers.rope import Rope
from lit_gpt.lightning import Fabric
from lit_gpt.methods.parts import parts_of, within
from lit_gpt.model import GPT

_HEAD = "lm_head.weight"
"""The output projection, which is in the file as the embeddings where both are tied."""


def load_base(
    fabric: Fabric,
    checkpoint_dir: Path,
    quantize: str | None = None,
    loaded: Callable[[GPT, str], None] | None = None,
) -> tuple[GPT, str]:
    """Returns the pretrained model on the device and in the precision of `fabric`, and the digest of its weights.

    The digest is that of `digest_of`, and after a hyphen that of all bytes that were read (`origin.py`).

    Args:
        quantize: key of QUANTIZATIONS, applied to the linear layers that `quantizable` names; None quantizes nothing.
        loaded: called with the model and each part of `parts_of` when that is there, before the next one is read.

    Raises:
        UserError: no checkpoint, a damaged one, or one that does not fit its configuration; weights that cannot be
            quantized in this precision, on this device, or with what is installed.
    """
    config, specs, get = open_lit(checkpoint_dir)
    return build(fabric, config, specs=specs, get=get, path=checkpoint_dir / WEIGHTS, quantize=quantize, loaded=loaded)


def build(
    fabric: Fabric,
    config: Config,
    specs: dict[str, Spec],
    get: Callable[[str], Tensor],
    path: Path,
    quantize: str | None = None,
    loaded: Callable[[GPT, str], None] | None = None,
) -> tuple[GPT, str]:
    """Returns the model with weights that `get` reads by name, and their digest; `load_base` with its inputs opened.

    Args:
        specs: shapes and dtypes of the weights, by name.
        get: their reader; weights that it has in 4 bits stay as they are where `quantize` is the same kind.
        path: the file that holds them, for error messages.

    Raises:
        UserError: weights that do not fit the configuration, cannot be quantized, or are NaN or infinite.
    """
    if quantize is not None:
        require_quantizable(quantize, fabric._precision.precision, fabric.device)
    with torch.device("meta"):
        model = GPT(config)
    check_fit(specs, model.state_dict(), path)
    with fabric.init_module(empty_init=True):
        like = torch.empty(0)
        model.rope = Rope(config)  # its cos and sin are computed, not loaded
    sums: dict[str, Tensor] = {}
    read = summed(config, specs, get)
    four_bits = get.four_bits if isinstance(get, Reader) and quantize else lambda name: None
    sampled = _fill(model, read, four_bits, like=like, quantize=quantize, sums=sums, loaded=loaded)
    _require_finite(sums, get, like.dtype, path)
    return model, f"{sampled}-{read.digest()}"


def summed(config: Config, names: Iterable[str], get: Callable[[str], Tensor]) -> Summed:
    """Returns a reader of a checkpoint's tensors, which can say afterwards what all of their bytes were.

    Args:
        names: names of the tensors.
        get: reads one of them.
    """
    return Summed(get, (name for name in names if not (config.tie_embeddings and name == _HEAD)))


def _require_finite(sums: dict[str, Tensor], get: Callable[[str], Tensor], dtype: torch.dtype, path: Path) -> None:
    """Checks that no weight is NaN or infinite; a tensor is read again only if its sum is.

    Args:
        sums: the sum of each tensor, by name.
        dtype: dtype of the weights in the model.
        path: the file that holds them.

    Raises:
        UserError: some are; the message names the first tensor with them.
    """
    finite = torch.stack([x.float() for x in sums.values()]).isfinite().tolist()
    suspects = [name for name, is_finite in zip(sums, finite, strict=True) if not is_finite]
    counts = {name: _n_not_finite(get(name)) for name in suspects}  # the sum of large numbers may be infinite, too
    bad = {name: n for name, n in counts.items() if n}
    for name, n in bad.items():
        others = f", and so are some in {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise UserError(
            f"{path}: {n:,} of the {get(name).numel():,} values of {name} are NaN or infinite{others}: no run of this "
            "model could be of use; get or make the file again"
        )
    for name in suspects:
        if n := _n_not_finite(get(name).to(dtype)):
            raise UserError(
                f"{path}: {n:,} values of {name} are too large for {str(dtype).removeprefix('torch.')}; "
                "pass --precision bf16-true or 32-true"
            )


def _n_not_finite(x: Tensor) -> int:
    return int((~x.isfinite()).sum())


def _fill(
    model: GPT,
    get: Callable[[str], Tensor],
    four_bits: Callable[[str], FourBits | None],
    like: Tensor,
    quantize: str | None,
    sums: dict[str, Tensor],
    loaded: Callable[[GPT, str], None] | None,
) -> str:
    """Loads the weights into `model`, which is on the meta device, layer by layer; returns their digest.

    Each layer is quantized before the next one is read, so that at most one is held unquantized.

    Args:
        get: reads a tensor by its name.
        four_bits: reads one in 4 bits, if it is stored in them.
        like: a tensor with the device and the dtype of weights that are not quantized.
        sums: gets the sum of each tensor by its name, which is NaN or infinite if one of its values is.
        loaded: called with each part when it is there.
    """
    chosen = quantizable(model) if quantize else ()
    tied = _HEAD if model.config.tie_embeddings else None
    samples: dict[str, str] = {}
    paths = [path for path, _ in model.named_modules()]  # a list of modules would keep replaced layers alive

    def fill_module(path: str) -> None:
        """Loads a layer's own weights, and quantizes it."""
        module = model.get_submodule(path)
        for leaf in [leaf for leaf, _ in module.named_parameters(recurse=False)]:
            name = f"{path}.{leaf}"
            x = get(name)
            samples[name] = sample(name, x)
            if name != tied:
                weight = like.new_empty(x.shape).copy_(x)
                sums[name] = weight.sum()
                setattr(module, leaf, nn.Parameter(weight))
        if path in chosen:
            assert isinstance(module, LinearLayer) and quantize is not None, path
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, quantized(module, quantize, four_bits(f"{path}.weight")))

    for part in parts_of(model):
        for path in (path for path in paths if within(path, part)):
            fill_module(path)
        if tied and part == "":
            model.lm_head.weight = model.transformer.wte.weight
        if loaded is not None:
            loaded(model, part)
    assert not any(x.is_meta for x in (*model.parameters(), *model.buffers()))
    return digest(samples)


def sample(name: str, x: Tensor) -> str:
    """Returns a text of a tensor's name, shape and a few values, the same for equal values in any of our dtypes."""
    flat = x.flatten()
    few = flat[:: max(1, flat.numel() // 16)][:16].to(torch.bfloat16)
    return f"{name} {list(x.shape)} {few.float().tolist()}"


def digest(samples: dict[str, str]) -> str:
    """Returns a hash that tells the weights of one checkpoint from those of another.

    Args:
        samples: `sample` of each tensor, by name.
    """
    return hashlib.sha256("".join(samples[name] for name in sorted(samples)).encode()).hexdigest()[:16]


def digest_of(names: Iterable[str], get: Callable[[str], Tensor]) -> str:
    """Returns the `digest` of tensors that are read one by one, which reads a sample of each only.

    Args:
        names: names of the checkpoint's tensors.
        get: reads one of them.
    """
    return digest({name: sample(name, get(name)) for name in names})
