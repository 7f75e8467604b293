"""The optimizer of a run, AdamW (https://arxiv.org/abs/1711.05101) of torch or bitsandbytes, with its learning rate."""

import math
from types import ModuleType

import torch

from lit_gpt.args import TrainArgs
from lit_gpt.errors import UserError
from lit_gpt.lightning import Fabric, FabricOptimizer
from lit_gpt.model import GPT
from lit_gpt.parallel.shards import trained_here

BITSANDBYTES = {"adamw8bit": "AdamW8bit", "paged_adamw": "PagedAdamW", "paged_adamw8bit": "PagedAdamW8bit"}
"""Value of --optimizer -> its class in bitsandbytes."""
STATE_BYTES = {"adamw": None, "adamw8bit": 2, "paged_adamw": 0, "paged_adamw8bit": 0}
"""Value of --optimizer -> bytes of its state on a GPU for each value that trains; None: two values of its dtype."""


def prepare_optimizer(fabric: Fabric, model: GPT, train: TrainArgs) -> FabricOptimizer:
    """Returns the optimizer of `make_optimizer`, set up by Fabric.

    Raises:
        UserError: bitsandbytes is missing, or cannot do this on the model's device.
    """
    scaled = getattr(fabric._precision, "scaler", None) is not None  # 16-mixed, which clips before a step
    optimizer = fabric.setup_optimizers(make_optimizer(model, train, fused=not scaled))
    assert isinstance(optimizer, FabricOptimizer)  # for one, it returns one
    return optimizer


def make_optimizer(model: GPT, train: TrainArgs, fused: bool = True) -> torch.optim.Optimizer:
    """Returns an optimizer of the parameters of `model` that require a gradient; weight decay is for matrices only.

    A parameter may have an attribute `lr_factor`, by which the learning rate of its group is multiplied (LoRA+).

    Args:
        fused: take the step of torch's AdamW in one kernel, which does not go with a gradient scaler's clipping.

    Raises:
        UserError: bitsandbytes is missing, or cannot do this on the model's device.
    """
    by_kind: dict[tuple[float, float], list[torch.Tensor]] = {}
    for name, p in trained_here(model).items():
        kind = (getattr(p, "lr_factor", 1.0), train.weight_decay if _decays(name, p) else 0.0)
        by_kind.setdefault(kind, []).append(p)
    groups = [
        {"params": trained, "lr_factor": factor, "weight_decay": decay} for (factor, decay), trained in by_kind.items()
    ]
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.learning_rate, fused=fused)
    package = _bitsandbytes(train.optimizer, model.transformer.wte.weight.device)
    return getattr(package.optim, BITSANDBYTES[train.optimizer])(groups, lr=train.learning_rate)


def _decays(name: str, parameter: torch.Tensor) -> bool:
    """Returns whether a parameter has weight decay: norms, biases, scales and gates have none."""
    return parameter.dim() == 2 and "norm" not in name  # a norm of queries can have a weight for each head


def _bitsandbytes(optimizer: str, device: torch.device) -> ModuleType:
    """Returns the package bitsandbytes.

    Raises:
        UserError: it is missing, or too old for optimizers on a CPU.
    """
    try:
        import bitsandbytes
    except ImportError as e:
        raise UserError(f'--optimizer {optimizer} needs the package {e.name}; run: pip install -e ".[quantize]"') from e
    operation = "optimizer_update_8bit_blockwise" if "8bit" in optimizer else "optimizer_update_32bit"
    if device.type == "cpu" and not torch._C._dispatch_has_kernel_for_dispatch_key(f"bitsandbytes::{operation}", "CPU"):
        raise UserError(
            f"--optimizer {optimizer} needs a GPU with bitsandbytes {bitsandbytes.__version__}; "
            "run: pip install -U bitsandbytes"
        )
    return bitsandbytes


def warmup_of(args: TrainArgs, n_steps: int) -> int:
    """Returns the warm-up steps of a run: --warmup_steps, but at most a tenth of the run, so that short runs train."""
    return min(args.warmup_steps, n_steps // 10)


def learning_rate(step: int, n_steps: int, args: TrainArgs) -> float:
    """Returns the learning rate of step 1 .. n_steps: a linear warm-up, then `lr_schedule` from the peak to 0."""
    warmup = warmup_of(args, n_steps)
    if step <= warmup:
        return args.learning_rate * step / warmup
    progress = (step - warmup - 1) / max(1, n_steps - warmup)  # 0 at the peak; the step after the last one would be 1
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return args.learning_rate * shape[args.lr_schedule]


def set_learning_rate(optimizer: FabricOptimizer, step: int, n_steps: int, args: TrainArgs) -> float:
    """Sets the learning rate of optimizer step `step` in all parameter groups; returns it.

    A group's rate is multiplied by its `lr_factor`, which LoRA+ sets.
    """
    rate = learning_rate(step, n_steps, args)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
    return rate
