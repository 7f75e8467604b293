"""The memory that this process has used and that the machine has, and checks of how the GPU is used."""

import ctypes
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files in which Linux keeps the memory limit of a group of processes, such as a container."""


def peak_memory_gb() -> float:
    """Returns the peak memory in GB (10^9 bytes) of the GPU's allocator, or without a GPU of the resident process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    if resource is None:
        return _windows_peak() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS and KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def total_memory() -> int:
    """Returns the bytes of memory of this machine, or those that the limit of this process's group allows."""
    if hasattr(os, "sysconf"):
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    else:
        limits = [_windows_total()]
    for path in _LIMITS:
        try:
            with open(path, encoding="utf-8") as file:
                limits.append(int(file.read()))
        except (OSError, ValueError):
            continue
    return min(limits)


def return_freed_memory() -> None:
    """Gives the system the memory that was freed and that the allocator of the C library keeps, where that is glibc.

    glibc keeps what is freed below something that is in use, so that after loading a model by layers as much as the
    model itself may be kept for nothing (`man 3 malloc_trim`).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""
_LARGEST_KEPT, _MOST_KEPT = 2**25, 2**30
"""Bytes: the highest limit that glibc takes for blocks that are kept, and what may be free above all that is in use."""


def keep_freed_memory() -> None:
    """Has the allocator of the C library keep what is freed, up to 1 GB, for the next tensors, where that is glibc.

    By default it gives much of it back to the system, which then clears each page of the next ones: a tenth of the
    time of a training step on a CPU (`man 3 mallopt`). Blocks of more than 32 MB are given back as before.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)


def keep_few_compiled_matmuls() -> None:
    """Has oneDNN keep 64 of the matmuls that it compiles, in place of 1024, unless the environment says how many.

    It compiles one for each number of rows, and micro-batches have many: a model of 135 million weights in bf16 took
    0.5 GB more memory after 25 steps than after one, and takes 0.2 GB more with this, for kernels that oneDNN keeps
    besides. It looks at the variable at its first matmul.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


class _Counters(ctypes.Structure):
    """The struct PROCESS_MEMORY_COUNTERS of psapi.h."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_working_set", ctypes.c_size_t),
        ("others", ctypes.c_size_t * 7),
    )


class _Status(ctypes.Structure):
    """The struct MEMORYSTATUSEX of sysinfoapi.h."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 6),
    )


def _windows_peak() -> float:
    """Returns the bytes of this process's largest working set; NaN if Windows does not tell."""
    kernel = ctypes.windll.kernel32  # pyright: ignore[reportAttributeAccessIssue] on Windows it is there
    counters = _Counters(cb=ctypes.sizeof(_Counters))
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    told = kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.cb)
    return counters.peak_working_set if told else math.nan


def _windows_total() -> int:
    """Returns the bytes of memory of a machine under Windows; 16 GB if it does not tell."""
    status = _Status(length=ctypes.sizeof(_Status))
    kernel = ctypes.windll.kernel32  # pyright: ignore[reportAttributeAccessIssue] as above
    return status.total if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else 16 * 10**9


@contextmanager
def never_waiting() -> Iterator[None]:
    """Makes torch raise a RuntimeError about synchronizing wherever the host would wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether an error means that torch had no memory left, on a GPU or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "alloc_cpu" in str(error)
