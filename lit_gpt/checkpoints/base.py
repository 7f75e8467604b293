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
from lit_gpt.checkpoints.shares import Shares
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
from lit_gpt.resources import return_freed_memory

_HEAD = "lm_head.weight"
"""The output projection, which is in the file as the embeddings where both are tied."""


def load_base(
    fabric: Fabric,
    checkpoint_dir: Path,
    quantize: str | None = None,
    loaded: Callable[[GPT, str], None] | None = None,
    shares: Shares | None = None,
) -> tuple[GPT, str]:
    """Returns the pretrained model on the device and in the precision of `fabric`, and the digest of its weights.

    The digest is that of `digest_of`, and after a hyphen that of all bytes that were read (`origin.py`).

    Args:
        quantize: key of QUANTIZATIONS, applied to the linear layers that `quantizable` names; None quantizes nothing.
        loaded: called with the model and each part of `parts_of` when that is there, before the next one is read.
        shares: what this process reads of the weights, of which it keeps a part; the others are not set. None is all.

    Raises:
        UserError: no checkpoint, a damaged one, or one that does not fit its configuration; weights that cannot be
            quantized in this precision, on this device, or with what is installed.
    """
    config, specs, get = open_lit(checkpoint_dir)
    path = checkpoint_dir / WEIGHTS
    return build(fabric, config, specs=specs, get=get, path=path, quantize=quantize, loaded=loaded, shares=shares)


def load_pretrained(fabric: Fabric, checkpoint_dir: Path, quantize: str | None = None) -> GPT:
    """Returns the model of `load_base` to those who compare its weights with no run, and so need no digest of them.

    Raises:
        UserError: what `load_base` raises.
    """
    config, specs, get = open_lit(checkpoint_dir)
    path = checkpoint_dir / WEIGHTS
    return build(fabric, config, specs=specs, get=get, path=path, quantize=quantize, is_compared=False)[0]


def build(
    fabric: Fabric,
    config: Config,
    specs: dict[str, Spec],
    get: Callable[[str], Tensor],
    path: Path,
    quantize: str | None = None,
    loaded: Callable[[GPT, str], None] | None = None,
    shares: Shares | None = None,
    is_compared: bool = True,
) -> tuple[GPT, str]:
    """Returns the model with weights that `get` reads by name, and their digest; `load_base` with its inputs opened.

    Args:
        specs: shapes and dtypes of the weights, by name.
        get: their reader; weights that it has in 4 bits stay as they are where `quantize` is the same kind.
        path: the file that holds them, for error messages.
        is_compared: whether the digest is needed; without, it is empty, and no byte is summed up.

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
    shares = shares or Shares()
    read = summed(config, specs if is_compared else (), get, shares.part)
    filling = _Filling(model, read, like, shares)
    filling.fill(quantize, get.four_bits if isinstance(get, Reader) and quantize else lambda name: None, loaded)
    _require_finite(filling.sums, get, like.dtype, path=path, shares=shares)
    return model, f"{digest(filling.samples, shares)}-{read.digest(shares.every)}" if is_compared else ""


def summed(
    config: Config, names: Iterable[str], get: Callable[[str], Tensor], part: tuple[int, int] = (0, 1)
) -> Summed:
    """Returns a reader of a checkpoint's tensors, which can say afterwards what all of their bytes were.

    Args:
        names: names of the tensors.
        get: reads one of them.
        part: as of `Summed`.
    """
    return Summed(get, (name for name in names if not (config.tie_embeddings and name == _HEAD)), part)


def _require_finite(
    sums: dict[str, Tensor], get: Callable[[str], Tensor], dtype: torch.dtype, *, path: Path, shares: Shares
) -> None:
    """Checks that no weight is NaN or infinite; a tensor is read again only if its sum is.

    Args:
        sums: the sum of each tensor, by name, or of what this process has read of it.
        dtype: dtype of the weights in the model.
        path: the file that holds them.

    Raises:
        UserError: some are; the message names the first tensor with them.
    """
    finite = torch.stack([x.float() for x in sums.values()]).isfinite().tolist() if sums else []
    mine = [name for name, is_finite in zip(sums, finite, strict=True) if not is_finite]
    suspects = list(dict.fromkeys(name for names in shares.every(mine) for name in names))
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


class _Filling:
    """Loads the weights of a model, layer by layer, or what this process reads of them.

    Args:
        model: it is on the meta device.
        get: reads a tensor by its name.
        like: a tensor with the device and the dtype of weights that are not quantized.

    Attributes:
        samples: a `sample` of each tensor, by its name.
        sums: the sum of each tensor, by its name, which is NaN or infinite if one of its values is.
    """

    def __init__(self, model: GPT, get: Summed, like: Tensor, shares: Shares) -> None:
        self.model, self.get, self.like, self.shares = model, get, like, shares
        self.tied = _HEAD if model.config.tie_embeddings else None
        self.samples: dict[str, str] = {}
        self.sums: dict[str, Tensor] = {}

    def fill(
        self,
        quantize: str | None,
        four_bits: Callable[[str], FourBits | None],
        loaded: Callable[[GPT, str], None] | None,
    ) -> None:
        """Loads all weights. Each layer is quantized before the next one is read, so that one at most is held whole.

        Args:
            four_bits: reads a tensor in 4 bits, if it is stored in them.
            loaded: called with each part when it is there.
        """
        model = self.model
        chosen = quantizable(model) if quantize else ()
        paths = [path for path, _ in model.named_modules()]  # a list of modules would keep replaced layers alive
        for part in parts_of(model):
            inside = [path for path in paths if within(path, part)]
            for path in inside:
                if quantize is not None and path in chosen:
                    self.quantize(path, quantize, four_bits)
                else:
                    self.load(path)
            for path in (path for path in inside if path in chosen):
                model.set_submodule(path, self.shares.sent(path, model.get_submodule(path)).to(self.like.device))
            if self.tied and part == "":
                model.lm_head.weight = model.transformer.wte.weight
            if loaded is not None:
                loaded(model, part)
                return_freed_memory()  # what was whole before it was divided
        return_freed_memory()
        assert not any(x.is_meta for x in (*model.parameters(), *model.buffers()))

    def load(self, path: str, whole: bool = False) -> None:
        """Loads a layer's own weights, or all of them, whatever other processes read."""
        module, part = self.model.get_submodule(path), (0, 1) if whole else self.shares.part
        for leaf in [leaf for leaf, _ in module.named_parameters(recurse=False)]:
            name = f"{path}.{leaf}"
            x = self.get.read(name, part)
            self.samples[name] = sample(name, x, part)
            if name != self.tied:
                rows = slice(None) if whole else self.shares.rows(x)
                weight = self.like.new_empty(x.shape)  # no page is touched where other processes read the rows
                weight[rows].copy_(x[rows])
                self.sums[name] = weight[rows].sum()
                setattr(module, leaf, nn.Parameter(weight))
        for leaf, kept in list(module.named_buffers(recurse=False)):
            if kept.is_meta and leaf not in module._non_persistent_buffers_set:
                x = self.get.read(name := f"{path}.{leaf}", part)
                self.samples[name] = sample(name, x, part)
                setattr(module, leaf, x.to(self.like.device, copy=True))  # in its own dtype
                self.sums[name] = x.sum()

    def quantize(self, path: str, kind: str, four_bits: Callable[[str], FourBits | None]) -> None:
        """Loads a layer's weights and puts the quantized layer in its place; or leaves that to another process."""
        layer = self.model.get_submodule(path)
        if self.shares.makes(path):
            self.load(path, whole=True)
            assert isinstance(layer, LinearLayer), path
            self.model.set_submodule(path, quantized(layer, kind, four_bits(f"{path}.weight")))
            return
        for name in [f"{path}.{leaf}" for leaf, _ in layer.named_parameters(recurse=False)]:
            self.get.leave(name)
            self.samples[name] = ""


def sample(name: str, x: Tensor, part: tuple[int, int] = (0, 1)) -> str:
    """Returns a text of a tensor's name, shape and a few values, the same for equal values in any of our dtypes.

    Args:
        part: (i, n) returns the i-th of n parts of the text, counted from 0, and reads about so much of the tensor.
    """
    (i, of), flat = part, x.flatten()
    few = flat[:: max(1, flat.numel() // 16)][:16]
    start, stop = len(few) * i // of, len(few) * (i + 1) // of
    values = ", ".join(map(str, few[start:stop].to(torch.bfloat16).float().tolist()))
    before = f"{name} {list(x.shape)} [" if i == 0 else ", " if values and start else ""
    return f"{before}{values}{']' if i == of - 1 else ''}"


def digest(samples: dict[str, str], shares: Shares = Shares()) -> str:
    """Returns a hash that tells the weights of one checkpoint from those of another.

    Args:
        samples: `sample` of each tensor, by name, or this process's part of it.
    """
    texts = shares.every([samples[name] for name in sorted(samples)])
    return hashlib.sha256("".join(map("".join, zip(*texts, strict=True))).encode()).hexdigest()[:16]


def digest_of(names: Iterable[str], get: Callable[[str], Tensor]) -> str:
    """Returns the `digest` of tensors that are read one by one, which reads a sample of each only.

    Args:
        names: names of the checkpoint's tensors.
        get: reads one of them.
    """
    return digest({name: sample(name, get(name)) for name in names})
