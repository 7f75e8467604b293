"""Lightning Fabric on one device, in the precision that suits it."""

import torch
from lightning.fabric import Fabric

from lit_gpt.args import Precision


def make_fabric(precision: Precision | None = None, seed: int | None = None, mixed: bool = False) -> Fabric:
    """Fabric on one device; with a seed, all random generators start from it.

    Args:
        precision: None is bf16-true on a GPU that has it, 16-true on an older one, 32-true on a CPU.
        seed: None leaves the generators alone.
        mixed: for None, mixed precision in the place of 16 bits for everything.
    """
    if precision is None:
        precision = "32-true"
        if torch.cuda.is_available():
            precision = "bf16-true" if torch.cuda.is_bf16_supported() else "16-true"
            precision = precision.replace("true", "mixed") if mixed else precision
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"  # not a Mac's GPU, for which nothing of ours is tested
    fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    if seed is not None:
        fabric.seed_everything(seed, verbose=False)
    return fabric
