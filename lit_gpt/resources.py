"""What this process has used of the machine."""

import resource
import sys

import torch


def peak_memory_gb() -> float:
    """Most memory held so far, in GB (10^9 bytes): the GPU's allocations, or without a GPU the resident process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there and KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
