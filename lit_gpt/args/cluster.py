"""How many devices train a model together, and how it lies on them."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from lit_gpt.args.require import require

Strategy = Literal["auto", "ddp", "fsdp"]
PATIENCE = timedelta(hours=24)
"""How long a process waits for another one that is alive: the first one may write for long."""


@dataclass(frozen=True)
class ClusterArgs:
    """How many devices train a model together, and how it lies on them (docs/more_devices.md)."""

    devices: int | None = None
    """GPUs of this machine, or processes on a CPU, that train together; 1, or as many as torchrun started, if not
    given. A step has the same samples, and the same result, on any number of them."""
    num_nodes: int = 1
    """Machines with so many devices each; the script is started on each of them, by torchrun."""
    strategy: Strategy = "auto"
    """ddp keeps the whole model on every device and adds up gradients; fsdp (FSDP2) keeps a part of every weight,
    gradient and optimizer state on each and brings a block together while it computes; auto takes ddp where the plan
    says that one device holds it."""

    def __post_init__(self) -> None:
        if self.devices is not None:
            require("devices", self.devices, at_least=1)
        require("num_nodes", self.num_nodes, at_least=1)
