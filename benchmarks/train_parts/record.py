"""What one training run took: micro-batch by micro-batch, then in figures."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

MARK = "figures: "


@dataclass(frozen=True)
class MicroBatch:
    """A forward and a backward pass, and the optimizer's step if one followed."""

    n_tokens: int
    """Real tokens, without padding."""
    n_samples: int
    n_targets: int
    loss: float
    """In nats, summed over the targets."""
    ended: float
    """`time.perf_counter()`."""
    n_computed: int
    """Tokens that were computed, padding apart: ours computes once what several samples begin with."""


@dataclass(frozen=True)
class Figures:
    """Of a run, its first `warmup` samples left out of the rates."""

    tokens_per_sec: float
    samples_per_sec: float
    peak_gb: float
    """Most memory that the process held, 10^9 bytes."""
    first_loss: float
    """Mean over the targets of the first micro-batch."""
    mean_loss: float
    """Mean over all targets."""
    n_tokens: int
    n_computed: int
    n_targets: int


class Record:
    """Filled while a peer trains."""

    def __init__(self) -> None:
        self.passes: list[MicroBatch] = []

    def add(self, n_tokens: int, n_samples: int, n_targets: int, loss: float, n_computed: int | None = None) -> None:
        n_computed = n_tokens if n_computed is None else n_computed
        self.passes.append(
            MicroBatch(
                n_tokens, n_samples, n_targets=n_targets, loss=loss, ended=time.perf_counter(), n_computed=n_computed
            )
        )

    def figures(self, warmup: int = 8) -> Figures:
        """
        Args:
            warmup: samples before the clock starts; the micro-batch that reaches it is the last one left out.
        """
        seen, first = 0, 0
        while seen < warmup:
            seen += self.passes[first].n_samples
            first += 1
        timed = self.passes[first:]
        seconds = timed[-1].ended - self.passes[first - 1].ended
        targets = sum(p.n_targets for p in self.passes)
        return Figures(
            tokens_per_sec=sum(p.n_tokens for p in timed) / seconds,
            samples_per_sec=sum(p.n_samples for p in timed) / seconds,
            peak_gb=peak_gb(),
            first_loss=self.passes[0].loss / self.passes[0].n_targets,
            mean_loss=sum(p.loss for p in self.passes) / targets,
            n_tokens=sum(p.n_tokens for p in self.passes),
            n_computed=sum(p.n_computed for p in self.passes),
            n_targets=targets,
        )

    def tell(self) -> None:
        """Print the figures for the process that started this one."""
        print(MARK + json.dumps(asdict(self.figures())), flush=True)


def heard(output: str) -> Figures | None:
    """The figures that a process printed among other things; None if it did not."""
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    return Figures(**json.loads(lines[-1].removeprefix(MARK))) if lines else None


def peak_gb() -> float:
    """Most resident memory of this process so far, as the kernel counted it, 10^9 bytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in status.splitlines() if line.startswith("VmHWM"))
