"""Base checkpoints: how a pretrained model gets from checkpoints/<org>/<name>/ onto the device.

checkpoints/<org>/<name>/  lit_model.pth, lit_config.json, the tokenizer's files     (scripts/convert_hf_checkpoint.py)
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from lit_gpt.args.folders import WEIGHTS
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.checkpoints.trained import check_fit
from lit_gpt.config import Config
from lit_gpt.files import Spec
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.quantize import quantizable, quantized, require_quantizable
from lit_gpt.layers.rope import Rope
from lit_gpt.model import GPT


def load_base(fabric: Fabric, checkpoint_dir: Path, quantize: str | None = None) -> tuple[GPT, str]:
    """The pretrained model on the device and in the precision of `fabric`, and the digest of its weights.

    Args:
        quantize: key of QUANTIZATIONS, for the linear layers that `quantizable` names; None quantizes nothing.

    Raises:
        UserError: no checkpoint, a damaged one, or one that does not fit its configuration; weights that cannot be
            quantized in this precision, on this device, or with what is installed.
    """
    config, specs, get = open_lit(checkpoint_dir)
    return build(fabric, config, specs=specs, get=get, path=checkpoint_dir / WEIGHTS, quantize=quantize)


def build(
    fabric: Fabric,
    config: Config,
    specs: dict[str, Spec],
    get: Callable[[str], Tensor],
    path: Path,
    quantize: str | None = None,
) -> tuple[GPT, str]:
    """As `load_base`, of weights that `get` reads by name.

    Args:
        specs: shapes and dtypes of these weights.
        path: the file that they are in.
    """
    if quantize is not None:
        require_quantizable(quantize, fabric._precision.precision, fabric.device)
    with torch.device("meta"):
        model = GPT(config)
    check_fit(specs, model.state_dict(), path)
    with fabric.init_module(empty_init=True):
        like = torch.empty(0)
        model.rope = Rope(config)  # is computed, not read
    return model, _fill(model, get, like, quantize)


def _fill(model: GPT, get: Callable[[str], Tensor], like: Tensor, quantize: str | None) -> str:
    """Read the weights of `model`, which has none so far, layer by layer; returns their digest.

    A layer is quantized before the next one is read, so that no more than one is there in full.

    Args:
        get: reads a tensor by its name.
        like: has the device and the dtype of what is not quantized.
    """
    chosen = quantizable(model) if quantize else ()
    tied = "lm_head.weight" if model.config.tie_embeddings else None
    samples: dict[str, str] = {}
    for path in [path for path, _ in model.named_modules()]:  # names alone: a module in a list would stay
        module = model.get_submodule(path)
        for leaf in [leaf for leaf, _ in module.named_parameters(recurse=False)]:
            name = f"{path}.{leaf}"
            x = get(name)
            samples[name] = sample(name, x)
            if name != tied:
                setattr(module, leaf, nn.Parameter(like.new_empty(x.shape).copy_(x)))
        if path in chosen:
            assert isinstance(module, LinearLayer) and quantize is not None, path
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, quantized(module, quantize))
    if tied:
        model.lm_head.weight = model.transformer.wte.weight
    assert not any(x.is_meta for x in (*model.parameters(), *model.buffers()))
    return digest(samples)


def sample(name: str, x: Tensor) -> str:
    """Name, shape and a few values of a tensor; equal for equal values in any of our dtypes."""
    flat = x.flatten()
    few = flat[:: max(1, flat.numel() // 16)][:16].to(torch.bfloat16)
    return f"{name} {list(x.shape)} {few.float().tolist()}"


def digest(samples: dict[str, str]) -> str:
    """What tells the weights of one checkpoint from those of another.

    Args:
        samples: `sample` of each tensor, by name.
    """
    return hashlib.sha256("".join(samples[name] for name in sorted(samples)).encode()).hexdigest()[:16]
