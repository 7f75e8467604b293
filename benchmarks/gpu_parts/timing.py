"""Seconds and peak memory of work on a device."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Measured:
    """A repeated piece of work."""

    seconds: float
    """Median of the repeats."""
    spread: float
    """(slowest - fastest) / median."""
    allocated_gb: float
    """Most memory that tensors held, 10^9 bytes; 0 on a CPU."""
    reserved_gb: float
    """Most memory that the allocator held of the device, 10^9 bytes; 0 on a CPU."""


def measure(
    work: Callable[[], object], device: torch.device, repeats: int, warmup: int = 2, inner: int = 1
) -> Measured:
    """Time `work`.

    Args:
        warmup: calls before the first timed one.
        inner: calls a repeat; the seconds are those of one.
    """
    for _ in range(warmup):
        work()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = [timed(work, device, inner) for _ in range(repeats)]
    median = statistics.median(times)
    return Measured(
        seconds=median,
        spread=(max(times) - min(times)) / median,
        allocated_gb=torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0,
        reserved_gb=torch.cuda.max_memory_reserved() / 1e9 if on_gpu else 0.0,
    )


def timed(work: Callable[[], object], device: torch.device, inner: int) -> float:
    """Seconds of one of `inner` calls in a row, by the device's own clock where it has one."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(inner):
            work()
        return (time.perf_counter() - start) / inner
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(inner):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / inner
