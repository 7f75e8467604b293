"""Lightning Fabric on one device, in the precision that suits it."""

import torch

from lit_gpt.args import Precision
from lit_gpt.lightning import Fabric


def make_fabric(precision: Precision | None = None, seed: int | None = None, mixed: bool = False) -> Fabric:
    """Returns Fabric on one device, the GPU if there is one; a seed seeds all random generators.

    Args:
        precision: None is `default_precision`.
        seed: None leaves the generators alone.
        mixed: prefer mixed precision where `precision` is None.
    """
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"  # not a Mac's GPU, for which nothing of ours is tested
    if precision is None:
        precision = default_precision(accelerator, accelerator == "cuda" and torch.cuda.is_bf16_supported(), mixed)
    fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    if seed is not None:
        fabric.seed_everything(seed, verbose=False)
    return fabric


def default_precision(device_type: str, bf16: bool, mixed: bool) -> Precision:
    """Returns the precision of a run that names none: 16 bits on a GPU, 32 on a CPU.

    Args:
        device_type: cuda or cpu.
        bf16: whether the GPU has bfloat16; fp16 otherwise.
        mixed: weights in 32 bits and matmuls in 16, as full finetuning takes; weights in 16 bits otherwise.
    """
    if device_type == "cpu":
        return "32-true"
    if mixed:
        return "bf16-mixed" if bf16 else "16-mixed"
    return "bf16-true" if bf16 else "16-true"
