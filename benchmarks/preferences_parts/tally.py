"""What a run on preferences took, step by step, then in figures."""

import json
import time
from dataclasses import asdict, dataclass

from train_parts.record import MARK, peak_gb


@dataclass(frozen=True)
class Figures:
    """What a run took, its first step left out of the rate."""

    pairs_per_sec: float
    peak_gb: float
    first_loss: float
    """Mean over the pairs of the first step."""
    mean_loss: float
    reference_seconds: float
    """Seconds of the reference, where it is computed once before the first step."""

    def with_reference(self, n_pairs: int) -> float:
        """Returns the pairs a second if the reference's time is counted, and every pair is seen once."""
        return n_pairs / (n_pairs / self.pairs_per_sec + self.reference_seconds)


class Tally:
    """Filled while a peer trains: (pairs, loss summed over them, when it was done) of each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float, float]] = []
        self.reference_seconds = 0.0

    def add(self, n_pairs: int, loss: float) -> None:
        self.steps.append((n_pairs, loss, time.perf_counter()))

    def tell(self) -> None:
        """Print the figures for the process that started this one."""
        n_timed, seconds = sum(n for n, _, _ in self.steps[1:]), self.steps[-1][2] - self.steps[0][2]
        found = Figures(
            pairs_per_sec=n_timed / seconds,
            peak_gb=peak_gb(),
            first_loss=self.steps[0][1] / self.steps[0][0],
            mean_loss=sum(loss for _, loss, _ in self.steps) / sum(n for n, _, _ in self.steps),
            reference_seconds=self.reference_seconds,
        )
        print(MARK + json.dumps(asdict(found)), flush=True)


def heard(output: str) -> Figures | None:
    """The figures that a process printed among other things; None if it did not."""
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    return Figures(**json.loads(lines[-1].removeprefix(MARK))) if lines else None
