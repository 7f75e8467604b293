"""Merge a LoRA run into a checkpoint folder of its own, one tensor at a time.

The folder has a record of what is in its weights (`record.py`).
"""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lit_gpt.args import LoRARunArgs
from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.args.formats import with_format
from lit_gpt.checkpoints.base import digest, sample
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.checkpoints.runs import Run, require_base
from lit_gpt.checkpoints.trained import check_fit, trained_path
from lit_gpt.convert.export import copy_styled
from lit_gpt.convert.names import EMBEDDINGS, HEAD
from lit_gpt.errors import UserError
from lit_gpt.files import Spec, load_state, replace_folder, save_stream
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.quantize import quantizable, quantized
from lit_gpt.merge.record import MERGED, merged_runs
from lit_gpt.methods import lora, trained_parameters
from lit_gpt.methods.lora.layer import LoRALinear
from lit_gpt.model import GPT

_Base = Literal["16bit", "trained"]


def write_merged(
    checkpoint_dir: Path,
    run_dir: Path,
    run: Run,
    out_dir: Path,
    base: _Base = "16bit",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Fill `out_dir` with a checkpoint of the merged weights that every script takes; it is whole or not there.

    Args:
        run: what `run_dir` says of itself.
        base: add the updates to the checkpoint's own weights, or to those that the training saw, which were rounded to
            its precision or quantized.
        dtype: of what is written; None is that of the checkpoint.
        overwrite: replace what `out_dir` holds.

    Returns:
        Lines that say which chat template goes along, if it is not the checkpoint's own.

    Raises:
        UserError: not a LoRA run, one of another checkpoint, or one that is in its weights already; a folder that holds
            something.
    """
    if run.method != "lora":
        raise UserError(f"{run_dir} is a run of {run.method}, and only LoRA's updates merge into the weights")
    if out_dir.resolve() in (checkpoint_dir.resolve(), run_dir.resolve()):
        raise UserError(f"--out_dir {out_dir} is what is to be merged; pass another folder")
    config, specs, get = open_lit(checkpoint_dir)
    path = trained_path(run_dir, run.method)
    trained = load_state(path, "the finetune script")
    runs = merged_runs(checkpoint_dir)
    identity = _digest_of_all(trained)
    if any(earlier["weights"] == identity for earlier in runs):
        raise UserError(f"{run_dir} is merged into {checkpoint_dir} already; generate/base.py takes that folder")
    require_base(run, run_dir, checkpoint_dir, digest({name: sample(name, get(name)) for name in specs}))
    args = LoRARunArgs(**run.method_args)
    with torch.device("meta"):
        model = GPT(config)
        chosen = quantizable(model) if run.quantize else set()
        lora.inject(model, args)
    check_fit(trained, trained_parameters(model), path)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    own = {name.replace(".linear.", "."): trained[name] for name in args.whole}
    if unknown := own.keys() - specs.keys():
        raise UserError(
            f"{run_dir} has {min(unknown)}, and a checkpoint of {config.name} has no place for it; the run itself goes "
            "into generate/lora.py and the scripts of eval/"
        )
    tied = config.tie_embeddings and HEAD.rpartition(".")[0] not in layers and not own.keys() & {HEAD, EMBEDDINGS}
    shared = {HEAD: EMBEDDINGS} if tied else {}
    specs = {name: Spec(spec.shape, dtype or spec.dtype) for name, spec in specs.items()}

    def tensor(name: str) -> Tensor:
        module, _, leaf = name.rpartition(".")
        x = own[name] if name in own else get(name)
        if base == "trained" and name not in own:
            x = _as_trained(x, run, module in chosen and leaf == "weight")
        if module in layers and leaf == "weight":
            x = _merged(
                x, layers[module], {n: t for n, t in trained.items() if n.startswith(f"{module}.lora_")}, module
            )
        return x.to(specs[name].dtype)

    message: list[str] = []

    def write(folder: Path) -> None:
        save_stream(specs, ((name, tensor(name)) for name in specs if name not in shared), folder / WEIGHTS, shared)
        replace(config, tie_embeddings=tied).to_json(folder / CONFIG)
        message.extend(copy_styled(checkpoint_dir, folder, run.prompt_style))
        record = {"prompt_style": run.prompt_style, "runs": [*runs, {**asdict(run), "into": base, "weights": identity}]}
        text = json.dumps(with_format(MERGED, record), indent=2, default=str)
        (folder / MERGED).write_text(text + "\n", encoding="utf-8")

    replace_folder(out_dir, write, overwrite)
    return message


def _merged(weight: Tensor, layer: LoRALinear, trained: dict[str, Tensor], name: str) -> Tensor:
    """The weight with its updates, fp32.

    Args:
        layer: without values (on the meta device); gets and keeps those of the updates, which are small.
        trained: its updates, by their names in the model.
        name: of the layer in the model.
    """
    layer.load_state_dict({n.removeprefix(f"{name}."): x for n, x in trained.items()}, strict=False, assign=True)
    layer.linear.weight = nn.Parameter(weight, requires_grad=False)
    x = layer.merged()
    layer.linear.weight = nn.Parameter(weight.to("meta"), requires_grad=False)
    return x


def _as_trained(x: Tensor, run: Run, is_quantized: bool) -> Tensor:
    """A tensor of the checkpoint as the training saw it; fp32 if it was quantized."""
    precisions: dict[str | None, torch.dtype] = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
    x = x.to(precisions.get(run.training.get("precision"), torch.float32))
    if not is_quantized or run.quantize is None:
        return x
    linear = Linear(x.size(1), x.size(0), bias=False, device="meta")
    linear.weight = nn.Parameter(x, requires_grad=False)
    return quantized(linear, run.quantize).dequantize()


def _digest_of_all(state: dict[str, Tensor]) -> str:
    """Of every value, unlike `digest`: two runs on the same base may differ in few."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode())
        sha.update(state[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
