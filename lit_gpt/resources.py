"""What this process has used of the machine, and how it uses the GPU."""

import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def peak_memory_gb() -> float:
    """Most memory held so far, in GB (10^9 bytes): the GPU's allocations, or without a GPU the resident process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there and KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


@contextmanager
def never_waiting() -> Iterator[None]:
    """Within, what makes the host wait for the GPU raises a RuntimeError that speaks of synchronizing."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch had no memory left, on a GPU or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "alloc_cpu" in str(error)
