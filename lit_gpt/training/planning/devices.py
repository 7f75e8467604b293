"""The devices that a run can be planned for: how much memory a process has there, and how fast they multiply."""

from dataclasses import dataclass
from difflib import get_close_matches

import torch

from lit_gpt.errors import UserError

GIB = 1024**3
REACHED = 0.79
"""Of the rate in the data sheet, by a product of large matrices in bf16: 782.5 of 989 TFLOP/s measured on an H100
(benchmarks/results/gpu.txt). Other devices were not measured."""
CONTEXT = 0.55e9
"""Bytes that CUDA and the libraries' workspaces take before the first tensor."""


@dataclass(frozen=True)
class Device:
    """A kind of GPU, or the CPU of this machine."""

    name: str
    gib: float
    """Memory that a process can have, as torch's `total_memory` says; less than on the box."""
    sheet_tflops: float
    """Dense products in 16 bits with sums in fp32, as the maker says; 0 if unknown."""
    bf16: bool = True
    fp8: bool = False
    """Compute capability 8.9 or more."""
    kind: str = "cuda"

    @property
    def n_bytes(self) -> int:
        return int(self.gib * GIB)

    @property
    def rate(self) -> float:
        """Operations a second that a large matrix product is taken to reach; 0 if unknown."""
        return self.sheet_tflops * 1e12 * REACHED


DEVICES = {
    device.name: device
    for device in (
        Device("a100-40gb", 39.35, 312),
        Device("a100-80gb", 79.15, 312),
        Device("h100-80gb", 79.10, 989, fp8=True),
        Device("h100-pcie", 79.10, 756, fp8=True),
        Device("h200", 139.72, 989, fp8=True),
        Device("l40s", 44.40, 362, fp8=True),
        Device("l4", 22.03, 121, fp8=True),
        Device("a10g", 22.06, 70),
        Device("a6000", 47.43, 155),
        Device("rtx6000ada", 47.37, 364, fp8=True),
        Device("rtx5090", 31.34, 210, fp8=True),
        Device("rtx4090", 23.64, 165, fp8=True),
        Device("rtx4080", 15.59, 97, fp8=True),
        Device("rtx3090", 23.68, 71),
        Device("rtx3060", 11.75, 26),
        Device("v100-16gb", 15.77, 125, bf16=False),
        Device("v100-32gb", 31.74, 125, bf16=False),
        Device("t4", 14.56, 65, bf16=False),
    )
}
"""By name."""
SIMILAR = {"a100": "a100-40gb", "h100": "h100-80gb", "h200-141gb": "h200", "v100": "v100-16gb", "a10": "a10g"}
"""Other names."""


def named(name: str) -> Device:
    """The device of this name; `24gb` is any GPU with so much memory on the box.

    Raises:
        UserError: no such device.
    """
    key = name.lower().replace("_", "-").replace(" ", "-").replace("rtx-", "rtx")
    key = SIMILAR.get(key, key)
    if key in DEVICES:
        return DEVICES[key]
    if key.endswith("gb") and key[:-2].isdigit():
        return Device(key, 0.983 * int(key[:-2]), 0.0)  # what an A100 of 40 GB leaves of them
    close = get_close_matches(key, [*DEVICES, *SIMILAR], n=3, cutoff=0.5)
    hint = f"close matches: {', '.join(close)}" if close else f"known are {', '.join(DEVICES)}, or 24gb and the like"
    raise UserError(f"--device {name!r} is no device we know; {hint}")


def this_machine(device: torch.device) -> Device:
    """The GPU or the CPU that `device` is. Of a GPU in DEVICES, the rate is that of the table."""
    if device.type != "cuda":
        return Device("cpu", total_memory() / GIB, 0.0, fp8=True, kind="cpu")
    properties = torch.cuda.get_device_properties(device)
    squeezed = properties.name.lower().replace(" ", "").replace("-", "")
    like = [d for d in DEVICES.values() if d.name.split("-")[0] in squeezed]
    rate = max((d.sheet_tflops for d in like), default=0.0)
    capability = (properties.major, properties.minor)
    return Device(properties.name, properties.total_memory / GIB, rate, capability >= (8, 0), capability >= (8, 9))


def total_memory() -> int:
    """Bytes of memory of this machine, or of what this process's group may have of it."""
    import os

    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [16 * GIB]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="utf-8") as file:
                limits.append(int(file.read()))
        except (OSError, ValueError):
            continue
    return min(limits)
