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
"""Optimizer steps after which the end of the run is forecast; the first one, which warms up, is not counted."""


@dataclass(frozen=True)
class _Forecast:
    """The time at which the run will end, estimated from its first steps."""

    step: int
    """Step after which the estimate was made."""
    seconds: float
    """Seconds from the start of the process to its end."""


@dataclass
class _Pauses:
    """Interruptions of the training, such as validations."""

    n: int
    """Number in the whole run."""
    n_done: int = 0
    seconds: float = 0.0
    """Seconds of all that are done."""

    def add(self, seconds: float) -> None:
        """Records one more."""
        self.n_done += 1
        self.seconds += seconds

    @property
    def left(self) -> float:
        """Estimated seconds of those to come."""
        return self.seconds / max(1, self.n_done) * max(0, self.n - self.n_done)


class Gauges:
    """Relates the speed of a run to what the machine can do and to what is left to do.

    Args:
        device: device of the run.
        n_samples: samples of the whole run.
        flops_per_token: operations of training for each token.
        peak: operations a second of a large matmul on this device; 0 if unknown.
        n_validations, n_saves: numbers in the whole run.
        time_left: returns the seconds to the time limit; None if there is none.
        max_seconds: the time limit of the whole run, if there is one.
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
        """Updates the length of the run."""
        self.length, self.n_samples = length, length.n_samples

    def iterated(self, step: int, samples: int, is_step: bool, n_samples: int, seconds: float) -> None:
        """Records the micro-batches of a line of the log.

        Args:
            samples: samples of the run so far.
            n_samples, seconds: samples and time of the line.
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
        """Seconds so far that did not go into training steps."""
        return self.validations.seconds + self.saves.seconds

    def of_peak(self, tokens_per_sec: float) -> float | None:
        """Returns the share of the peak at this speed; None if the peak is unknown."""
        if not self.peak or not self.flops_per_token:
            return None
        return tokens_per_sec * self.flops_per_token / self.peak

    def seconds_left(self, samples: int) -> float | None:
        """Returns the estimated seconds to the end of the run; None before its first line."""
        if self.per_sample is None:
            return None
        return (self.n_samples - samples) * self.per_sample + self.validations.left + self.saves.left

    def line(self, step: int, samples: int, tokens_per_sec: float, short: bool = False) -> str:
        """Returns speed, share of the peak, memory and time left as text.

        Args:
            short: the line may be truncated, and so begins with the time.
        """
        speed = [f"{tokens_per_sec:,.0f} tok/s"]
        share = self.of_peak(tokens_per_sec)
        if share is not None:
            speed.append(f"{share:.0%} of peak")
        speed.append(f"{memory_gb(self.device):.1f} GB")
        times = list(self.times(step, samples, short))
        return ", ".join(times + speed if short else speed + times)

    def times(self, step: int, samples: int, short: bool) -> Iterator[str]:
        """Yields how far the run is, and when it will end and by which limit."""
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
    """Returns the peak memory so far in 10^9 bytes: what torch reserved of the GPU, or all of a CPU's process."""
    return torch.cuda.max_memory_reserved(device) / 1e9 if device.type == "cuda" else peak_memory_gb()


@torch.no_grad()
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the operations a second of a large matmul on this device, the best of a few; draws no random numbers."""
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
    """Waits until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(seconds: float) -> str:
    """Returns seconds as H:MM:SS."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
