"""What a run's figures mean: share of the device's peak, memory, and when it will end."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from lit_gpt.layers.cpu_matmul import matmul
from lit_gpt.resources import peak_memory_gb
from lit_gpt.training.length import Length
from lit_gpt.training.run.budget import process_seconds

_FIRST_STEPS = 3
"""Optimizer steps after which the end of the run is told; the first of them is not counted, as it warms up."""


@dataclass(frozen=True)
class _Forecast:
    """When the run will end, by its first steps."""

    step: int
    """After which it was made."""
    seconds: float
    """From the start of the process to its end."""


@dataclass
class _Pauses:
    """What interrupts the training now and then, such as validations."""

    n: int
    """Of the whole run."""
    n_done: int = 0
    seconds: float = 0.0
    """Of all that are done."""

    def add(self, seconds: float) -> None:
        """One more took this long."""
        self.n_done += 1
        self.seconds += seconds

    @property
    def left(self) -> float:
        """Seconds of those to come."""
        return self.seconds / max(1, self.n_done) * max(0, self.n - self.n_done)


class Gauges:
    """Reads what a run does against what the machine can do and what there is to do.

    Args:
        device: that the run is on.
        n_samples: of the whole run.
        flops_per_token: operations of training, a token.
        peak: operations a second that a large matrix product reaches here; 0 if unknown.
        n_validations, n_saves: of the whole run.
        time_left: seconds to the deadline; None if there is none.
        max_seconds: that the whole run may take, where there is a deadline.
    """

    def __init__(
        self,
        device: torch.device,
        n_samples: int,
        flops_per_token: float = 0.0,
        peak: float = 0.0,
        n_validations: int = 0,
        time_left: Callable[[], float] | None = None,
        n_saves: int = 0,
        max_seconds: float | None = None,
    ) -> None:
        self.device, self.n_samples, self.time_left, self.max_seconds = device, n_samples, time_left, max_seconds
        self.length: Length | None = None
        self.flops_per_token, self.peak = flops_per_token, peak
        self.validations, self.saves = _Pauses(n_validations), _Pauses(n_saves)
        self.begun: tuple[int, float] | None = None
        self.per_sample: float | None = None
        self.forecast: _Forecast | None = None

    def expect(self, length: Length) -> None:
        """The run is now known to be that long."""
        self.length, self.n_samples = length, length.n_samples

    def iterated(self, step: int, samples: int, is_step: bool, n_samples: int, seconds: float) -> None:
        """A line's micro-batches are done.

        Args:
            samples: of the run so far.
            n_samples, seconds: of the line.
        """
        if n_samples:
            latest = seconds / n_samples
            self.per_sample = latest if self.per_sample is None else 0.9 * self.per_sample + 0.1 * latest
        if not is_step:
            return
        if self.begun is None:
            self.begun = (samples, process_seconds() - self.pausing)
        elif self.forecast is None and step >= _FIRST_STEPS:
            first, since = self.begun
            pace = (process_seconds() - self.pausing - since) / max(1, samples - first)
            left = (self.n_samples - samples) * pace + self.validations.left + self.saves.left
            self.forecast = _Forecast(step, process_seconds() + left)

    @property
    def has_trained(self) -> bool:
        """Whether this process took a step."""
        return self.begun is not None

    @property
    def pausing(self) -> float:
        """Seconds that did not go into training steps so far."""
        return self.validations.seconds + self.saves.seconds

    def of_peak(self, tokens_per_sec: float) -> float | None:
        """Part of the peak that training at this speed is; None if the peak is unknown."""
        if not self.peak or not self.flops_per_token:
            return None
        return tokens_per_sec * self.flops_per_token / self.peak

    def seconds_left(self, samples: int) -> float | None:
        """To the end of the run; None before its first line."""
        if self.per_sample is None:
            return None
        return (self.n_samples - samples) * self.per_sample + self.validations.left + self.saves.left

    def line(self, step: int, samples: int, tokens_per_sec: float, short: bool = False) -> str:
        """All of it, for a reader.

        Args:
            short: the line may be cut off, and so begins with the time.
        """
        speed = [f"{tokens_per_sec:,.0f} tok/s"]
        share = self.of_peak(tokens_per_sec)
        if share is not None:
            speed.append(f"{share:.0%} of peak")
        speed.append(f"{memory_gb(self.device):.1f} GB")
        times = list(self.times(step, samples, short))
        return ", ".join(times + speed if short else speed + times)

    def times(self, step: int, samples: int, short: bool) -> Iterator[str]:
        """How far the run is on the way to the limit that will end it, and when that is."""
        left = self.seconds_left(samples)
        if self.length is not None and not short:
            yield f"{step}/{self.length.n_steps} steps"
        ended_by = self.length.ended_by if self.length is not None else ""
        ends = f" (--{ended_by} ends it)" if ended_by and not short else ""
        if ended_by == "max_time" and self.time_left is not None:
            yield f"{clock(self.time_left())} left of {clock(self.max_seconds or 0.0)}{ends}"
            return
        if left is not None:
            yield f"{clock(left)} left{ends}"
        if self.time_left is not None:
            yield f"deadline in {clock(self.time_left())}"


def memory_gb(device: torch.device) -> float:
    """Most memory taken so far, 10^9 bytes: what torch holds of the GPU, freed or not; of a CPU's process, all."""
    return torch.cuda.max_memory_reserved(device) / 1e9 if device.type == "cuda" else peak_memory_gb()


@torch.no_grad()
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product here, the best of a few; takes a moment and no random numbers."""
    n = 4096 if device.type == "cuda" else 1024
    x = torch.linspace(-1, 1, n * n, device=device).view(n, n).to(dtype)
    best = float("inf")
    for _ in range(8):
        wait(device)
        start = time.perf_counter()
        matmul(x, x)
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def wait(device: torch.device) -> None:
    """Until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(seconds: float) -> str:
    """Seconds as H:MM:SS."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
