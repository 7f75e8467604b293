"""Merges a LoRA run into a new checkpoint folder, or writes the weights of a full run as one, one tensor at a time.

The folder also holds a record of the runs in its weights (`record.py`).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lit_gpt.args.finetuning import MERGEABLE
from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.args.formats import with_format
from lit_gpt.checkpoints.base import digest_of, summed
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.checkpoints.origin import require_undamaged
from lit_gpt.checkpoints.runs import Run, require_base
from lit_gpt.checkpoints.trained import check_fit, load_trained, trained_path
from lit_gpt.config import Config
from lit_gpt.convert.export import copy_styled
from lit_gpt.convert.names import EMBEDDINGS, HEAD
from lit_gpt.convert.precision import precision_of
from lit_gpt.errors import UserError
from lit_gpt.files import Spec, only_writer, replace_folder, save_stream
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.quantize import quantizable, quantized
from lit_gpt.layers.quantize.four_bits import FourBits
from lit_gpt.merge.record import MERGED, merged_runs
from lit_gpt.methods import METHODS, trained_parameters
from lit_gpt.methods.lora.layer import LoRALinear
from lit_gpt.model import GPT

_Base = Literal["16bit", "trained"]


class _Plan(NamedTuple):
    """What a run changes in the tensors of its checkpoint."""

    config: Config
    """The configuration of the merged checkpoint."""
    layers: dict[str, LoRALinear]
    """The layers with updates by name, without values (on the meta device)."""
    trained: dict[str, Tensor]
    """The run's weights."""
    own: dict[str, Tensor]
    """Parameters that the run replaces as a whole, by their names in the checkpoint."""
    quantized_layers: set[str]
    """Names of the layers that were quantized in training."""


def write_merged(
    checkpoint_dir: Path,
    run_dir: Path,
    run: Run,
    out_dir: Path,
    base: _Base = "16bit",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Writes a checkpoint of the merged weights, which every script takes, to `out_dir`, completely or not at all.

    Args:
        run: the record of the run in `run_dir`.
        base: add the updates to the checkpoint's own weights ("16bit"), or to the weights that the training saw, which
            were rounded to its precision or quantized ("trained").
        dtype: dtype of the merged weights; None keeps that of the checkpoint.
        overwrite: replace what `out_dir` holds.

    Returns:
        Lines that say which chat template is written, if it is not the checkpoint's own, and the precision.

    Raises:
        UserError: the run is one of adapters, is of another checkpoint, or is merged into it already; `out_dir` is not
            empty.
    """
    if run.method not in MERGEABLE:
        raise UserError(f"{run_dir} is a run of {run.method}, whose layers no merged weights can compute")
    if out_dir.resolve() in (checkpoint_dir.resolve(), run_dir.resolve()):
        raise UserError(f"--out_dir {out_dir} is what is to be merged; pass another folder")
    config, specs, get = open_lit(checkpoint_dir)
    path = trained_path(run_dir, run.method)
    trained = load_trained(path)
    earlier_runs = merged_runs(checkpoint_dir)
    identity = identity_of(trained)
    if any(earlier.get("weights") == identity for earlier in earlier_runs):
        raise UserError(f"{run_dir} is merged into {checkpoint_dir} already; generate/base.py takes that folder")
    sampled = digest_of(specs, get)
    require_base(run, run_dir, checkpoint_dir, sampled)
    plan = _plan(config, specs, run=run, trained=trained, path=path)
    merged = {name: x for name, x in asdict(run).items() if name != "base_files"}  # of use to the run's own folder
    record = {
        "prompt_style": run.prompt_style,
        "runs": [*earlier_runs, {**merged, "into": base, "weights": identity}],
    }
    message: list[str] = []

    def write(folder: Path) -> None:
        read = summed(config, specs, get)
        _write_weights(plan, specs, read, four_bits=get.four_bits, run=run, base=base, dtype=dtype, folder=folder)
        require_undamaged(checkpoint_dir, f"{sampled}-{read.digest()}", run.base_digest, run.base_files)
        message.extend(copy_styled(checkpoint_dir, folder, run.prompt_style))
        message.append(precision_of(checkpoint_dir, specs, get, str(dtype).removeprefix("torch.") if dtype else None))
        text = json.dumps(with_format(MERGED, record), indent=2, default=str)
        (folder / MERGED).write_text(text + "\n", encoding="utf-8")

    with only_writer(out_dir):
        replace_folder(out_dir, write, overwrite)
    return message


def _plan(config: Config, specs: Mapping[str, Spec], run: Run, trained: dict[str, Tensor], path: Path) -> _Plan:
    """Returns what the run changes in each tensor of the checkpoint.

    Args:
        specs: the checkpoint's tensors.
        trained: the run's weights.
        path: the file of the run's weights, for messages.

    Raises:
        UserError: the run's weights do not fit the model, or a checkpoint cannot hold one of them.
    """
    inject, args_class = METHODS[run.method]
    args = args_class(**run.method_args)
    with torch.device("meta"):
        model = GPT(config)
        quantized_layers = quantizable(model) if run.quantize else set()
        inject(model, args)
    check_fit(trained, trained_parameters(model), path)
    if run.method == "full":
        return _Plan(config, layers={}, trained={}, own=trained, quantized_layers=set())
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    own = {name.replace(".linear.", "."): trained[name] for name in args.whole}
    if unknown := own.keys() - specs.keys():
        raise UserError(
            f"{path.parent} has {min(unknown)}, and a checkpoint of {config.name} has no place for it; the run itself "
            "goes into generate/lora.py and the scripts of eval/"
        )
    tied = config.tie_embeddings and HEAD.rpartition(".")[0] not in layers and not own.keys() & {HEAD, EMBEDDINGS}
    return _Plan(replace(config, tie_embeddings=tied), layers, trained, own=own, quantized_layers=quantized_layers)


def _write_weights(
    plan: _Plan,
    specs: Mapping[str, Spec],
    get: Callable[[str], Tensor],
    four_bits: Callable[[str], FourBits | None],
    run: Run,
    base: _Base,
    dtype: torch.dtype | None,
    folder: Path,
) -> None:
    """Writes the merged weights, one tensor at a time, and their configuration into `folder`.

    Args:
        four_bits: reads a tensor of the checkpoint in 4 bits, if it is stored in them.
    """
    shared = {HEAD: EMBEDDINGS} if plan.config.tie_embeddings else {}
    specs = {name: Spec(spec.shape, dtype or spec.dtype) for name, spec in specs.items()}
    names = [name for name in specs if name not in shared]
    kept = four_bits if run.quantize else lambda name: None
    merged = ((n, _merged_tensor(n, plan, get, four_bits=kept, run=run, base=base).to(specs[n].dtype)) for n in names)
    save_stream(specs, merged, folder / WEIGHTS, shared)
    plan.config.to_json(folder / CONFIG)


def _merged_tensor(
    name: str,
    plan: _Plan,
    get: Callable[[str], Tensor],
    four_bits: Callable[[str], FourBits | None],
    run: Run,
    base: _Base,
) -> Tensor:
    """Returns one tensor of the merged checkpoint, not yet in the dtype of the file."""
    module, _, leaf = name.rpartition(".")
    x = plan.own[name] if name in plan.own else get(name)
    if base == "trained" and name not in plan.own:
        x = _as_trained(x, run, module in plan.quantized_layers and leaf == "weight", four_bits(name))
    if module in plan.layers and leaf == "weight":
        updates = {n: t for n, t in plan.trained.items() if n.startswith(f"{module}.lora_")}
        x = _merged(x, plan.layers[module], updates, module)
    return x


def _merged(weight: Tensor, layer: LoRALinear, trained: dict[str, Tensor], name: str) -> Tensor:
    """Returns the weight with its updates added, fp32.

    Args:
        layer: the layer on the meta device; gets and keeps the values of the updates, which are small.
        trained: the updates of the layer, by their names in the model.
        name: the name of the layer in the model.
    """
    layer.load_state_dict({n.removeprefix(f"{name}."): x for n, x in trained.items()}, strict=False, assign=True)
    layer.linear.weight = nn.Parameter(weight, requires_grad=False)
    x = layer.merged()
    layer.linear.weight = nn.Parameter(weight.to("meta"), requires_grad=False)
    return x


def _as_trained(x: Tensor, run: Run, is_quantized: bool, kept: FourBits | None) -> Tensor:
    """Returns a tensor of the checkpoint as the training saw it; fp32 if it was quantized.

    Args:
        kept: the tensor in 4 bits, if the checkpoint has it in them.
    """
    precisions: dict[str | None, torch.dtype] = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
    x = x.to(precisions.get(run.training.get("precision"), torch.float32))
    if not is_quantized or run.quantize is None:
        return x
    linear = Linear(x.size(1), x.size(0), bias=False, device="meta")
    linear.weight = nn.Parameter(x, requires_grad=False)
    return quantized(linear, run.quantize, kept).dequantize()


def identity_of(state: dict[str, Tensor]) -> str:
    """Returns the SHA-256 of every value of a state dict.

    `digest` only samples values, and two runs on the same base may differ in few.
    """
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode())
        sha.update(state[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
