"""Whether to plan a run in place of starting it, and for what device."""

from dataclasses import dataclass
from typing import Literal

from lit_gpt.args.cluster import ClusterArgs
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class PlanArgs:
    """Whether to plan a run in place of starting it, and for what device."""

    dry_run: bool = False
    """Print how much memory and time the run will take, and stop without writing anything."""
    device: str | None = None
    """Plan for this device, such as a100-40gb, rtx4090, 24gb or cpu; the one of this machine if not given."""
    probe: bool | None = None
    """Time a few steps on this machine; if not given, when the weights are there and no other --device is named."""
    fit: bool = False
    """Choose micro-batch, activation checkpointing, quantization and length so that the run fits the device and
    --max_time, and print the command line."""

    link: Literal["nvlink", "pcie", "ib", "ethernet"] | None = None
    """The slowest link between the --devices, for planning: pcie within a machine, and ethernet (25 Gb/s) between
    machines, if not given; ib is InfiniBand with 200 Gb/s a machine."""

    def started(self, cluster: ClusterArgs) -> ClusterArgs | None:
        """Returns the devices that are to start: none besides this process, if it only plans."""
        return None if self.dry_run else cluster

    def __post_init__(self) -> None:
        for name in ("fit", "device", "probe", "link"):
            if getattr(self, name) and not self.dry_run:
                raise UserError(f"--{name} is for planning; add --dry_run true")
        if self.probe and self.device not in (None, "cpu"):
            raise UserError(f"--probe true times this machine, and --device {self.device} is another; leave out one")
