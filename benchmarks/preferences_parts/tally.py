"""What a run on preferences took, step by step, then in figures."""

import json
import time
from dataclasses import asdict, dataclass

from train_parts.record import MARK, peak_gb


@dataclass(frozen=True)
class Figures:
    """What a run took, its first step left out of the rate."""

    per_sec: float
    """Pairs of DPO, or answers of GRPO, a second."""
    per_processor_sec: float
    """The same by the processor's time of all threads, which others on the machine disturb less."""
    peak_gb: float
    first_loss: float
    """Mean over the pairs or answers of the first step."""
    mean_loss: float
    reference_seconds: float
    """Seconds of the reference, where it is computed once before the first step."""

    def with_reference(self, n_pairs: int) -> float:
        """Returns the pairs a second if the reference's time is counted, and every pair is seen once."""
        return n_pairs / (n_pairs / self.per_sec + self.reference_seconds)


class Tally:
    """Filled while a peer trains: (pairs or answers, their loss, clock and processor's time) of each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float, float, float]] = []
        self.reference_seconds = 0.0

    def add(self, n: int, loss: float) -> None:
        self.steps.append((n, loss, time.perf_counter(), time.process_time()))

    def tell(self) -> None:
        """Print the figures for the process that started this one."""
        n_timed = sum(step[0] for step in self.steps[1:])
        seconds, processor_seconds = (self.steps[-1][k] - self.steps[0][k] for k in (2, 3))
        found = Figures(
            per_sec=n_timed / seconds,
            per_processor_sec=n_timed / processor_seconds,
            peak_gb=peak_gb(),
            first_loss=self.steps[0][1] / self.steps[0][0],
            mean_loss=sum(step[1] for step in self.steps) / sum(step[0] for step in self.steps),
            reference_seconds=self.reference_seconds,
        )
        print(MARK + json.dumps(asdict(found)), flush=True)


def heard(output: str) -> Figures | None:
    """The figures that a process printed among other things; None if it did not."""
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    return Figures(**json.loads(lines[-1].removeprefix(MARK))) if lines else None
