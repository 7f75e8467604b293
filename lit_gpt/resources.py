"""What this process has used of the machine, and how it uses the GPU."""

import os
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

STARTED = time.monotonic()
"""When this module was imported, for systems that do not tell when the process began."""


def process_seconds() -> float:
    """Since this process began, by a clock that nobody sets."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # field 22, starttime, proc(5)
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - STARTED


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
