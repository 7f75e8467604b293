"""What a run shows: a progress bar in a terminal, plain lines in a file, and always metrics.csv."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from lit_gpt.data.batches import Batch
from lit_gpt.files import replace_with
from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.report.metrics import read_metrics
from lit_gpt.training.length import Length, outlook
from lit_gpt.training.run.counts import Counts
from lit_gpt.training.run.disk import going_on, reason
from lit_gpt.training.run.gauges import Gauges, memory_gb
from lit_gpt.training.run.loggers import Logger, figures
from lit_gpt.training.run.metrics import METRICS, MetricsFile

_COUNTED = ("iter", "samples", "n_tokens", "n_targets", "n_terms", "n_iterations")
"""Counts of the monitor that a checkpoint keeps."""
CURVE = "loss.png"
"""File in a run's folder with the plot of its losses."""
_BAR = "{percentage:3.0f}% {bar:8} {n_fmt}/{total_fmt}{postfix}"
"""Format of the bar, without tqdm's own time left, which does not count validations."""


@dataclass(frozen=True)
class _Due:
    """A line of the log that is not written yet."""

    row: dict[str, Any]
    sums: Tensor
    """Loss and figures summed over the terms of its micro-batches, on their way to the CPU."""
    arrived: "torch.cuda.Event | None"
    n_iterations: int
    is_step: bool


class Monitor:
    """Counts and reports what the loop tells it.

    Losses stay on the device until a line is due, and the line is written while the device is busy with the next
    micro-batch: a GPU never waits for it.

    Args:
        out_dir: where metrics.csv goes.
        n_samples: samples of the whole run.
        log_interval: micro-batches between lines.
        goes_on: keep the lines of earlier processes; `restore` says up to where.
        gauges: relate the figures to the machine's peak and to the length of the run.
        logger: gets the figures, too.
        figures: names of what the objective reports beside the loss.
        team: processes whose figures are added up, once a step; their leader writes them.
    """

    def __init__(
        self,
        out_dir: Path,
        n_samples: int,
        log_interval: int,
        goes_on: bool = False,
        gauges: Gauges | None = None,
        logger: Logger | None = None,
        figures: Sequence[str] = (),
        team: Team = ALONE,
    ) -> None:
        self.figures, self.team, self.mine = tuple(figures), team, Counts()
        self.log_interval, self.n_samples = log_interval, n_samples
        self.gauges, self.logger = gauges or Gauges(torch.device("cpu"), n_samples), logger
        self.reported = 0
        self.iter = self.samples = 0
        self.due: _Due | None = None
        self.logs = True
        """Whether the logger took the last figures."""
        self.bar = (
            tqdm(total=n_samples, dynamic_ncols=True, bar_format=_BAR)
            if team.leads and _has_columns(sys.stderr)
            else None
        )
        more = (*self.figures, *(f"val_{name}" for name in self.figures), "n_terms") if self.figures else ()
        self.metrics = MetricsFile(out_dir / METRICS, goes_on, self.say, more) if team.leads else None
        self.start = time.perf_counter()
        self.since_line = time.perf_counter()
        self.losses: list[Tensor] = []
        self.n_tokens = self.n_targets = self.n_terms = self.n_iterations = 0

    def mark(self) -> dict[str, Any]:
        """Returns where the monitor is, for `restore`."""
        where = {name: getattr(self, name) for name in _COUNTED}
        return where | {"losses": list(self.losses), "n_rows": self.metrics.n_rows if self.metrics else 0}

    def state(self) -> dict[str, Any]:
        """Returns what `mark` does in plain values, for a checkpoint, after writing the line that is due."""
        self.report()
        losses = [loss.tolist() if self.figures else loss.item() for loss in self.losses]
        return self.mark() | {"losses": losses, "seconds": time.perf_counter() - self.start}

    def restore(self, mark: dict[str, Any]) -> None:
        """Goes back to where `mark` or `state` was taken, and removes later lines of metrics.csv."""
        self.report()
        for name in _COUNTED:
            setattr(self, name, mark.get(name, getattr(self, name)))
        self.reported, self.mine = self.samples, Counts()
        self.losses = [torch.as_tensor(loss, dtype=torch.float32) for loss in mark.get("losses", [])]
        if "seconds" in mark:
            self.start = time.perf_counter() - mark["seconds"]
        if self.metrics is not None:
            self.metrics.cut(self.iter, mark.get("n_rows"))
        if self.bar is not None:
            self.bar.n = self.samples
            self.bar.refresh()

    def expect(self, step: int, length: Length) -> None:
        """Updates the length of the run after `step` steps; the first time, says what the run is going to do."""
        if self.gauges.length is None:
            for line in outlook(step, length):
                self.say(line)
        self.gauges.expect(length)
        self.n_samples = length.n_samples
        if self.bar is not None:
            self.bar.total = length.n_samples

    def iterated(self, step: int, batch: Batch, loss: Tensor, learning_rate: float, is_step: bool) -> None:
        """Records a micro-batch, which the device may still be computing.

        Args:
            loss: loss, and after it the figures, summed over the terms of the batch; without figures a scalar.
        """
        self.report()
        self.mine.add(batch, loss)
        if self.team.is_alone:
            self._count(step, self.mine, learning_rate, is_step)

    def stepped(self, step: int, learning_rate: float) -> None:
        """Records what all processes did in a step, if there are several; `iterated` has counted this one's part."""
        if not self.team.is_alone:
            self._count(step, self.mine.of(self.team, len(self.figures)), learning_rate, is_step=True)

    def _count(self, step: int, counts: "Counts", learning_rate: float, is_step: bool) -> None:
        """Adds up micro-batches, and has a line written when one is due."""
        before, self.mine = self.iter // self.log_interval, Counts()
        self.iter += counts.n_iterations
        self.samples += counts.n_samples
        self.losses.append(loss := torch.stack(counts.losses).sum(0))
        self.n_tokens += counts.n_tokens
        self.n_targets += counts.n_targets
        self.n_terms += counts.n_terms
        self.n_iterations += counts.n_iterations
        if self.iter // self.log_interval == before and self.samples < self.n_samples:
            return
        row = {
            "iter": self.iter,
            "step": step,
            "samples": self.samples,
            "learning_rate": f"{learning_rate:.4g}",
            "n_tokens": self.n_tokens,
            "n_targets": self.n_targets,
            "n_terms": self.n_terms,
        }
        total = torch.stack(self.losses).sum(0).to("cpu", non_blocking=True)
        arrived = torch.cuda.Event() if loss.is_cuda else None
        if arrived is not None:
            arrived.record()
        self.due = _Due(row, total, arrived, n_iterations=self.n_iterations, is_step=is_step)
        self.losses, self.n_tokens, self.n_targets, self.n_terms, self.n_iterations = [], 0, 0, 0, 0
        if arrived is None:  # a CPU is done with it; later, the line would include the time of the next one
            self.report()

    def report(self) -> None:
        """Writes the line that is due, if one is, after waiting for its micro-batches."""
        if self.due is None:
            return
        due, self.due = self.due, None
        if due.arrived is not None:
            due.arrived.synchronize()
        sums = due.sums.tolist() if self.figures else [due.sums.item()]
        mean, *means = (total / max(1, due.row["n_terms"]) for total in sums)
        seconds = time.perf_counter() - self.since_line
        self.since_line = time.perf_counter()
        samples, step = due.row["samples"], due.row["step"]
        self.gauges.iterated(step, samples, due.is_step, samples - self.reported, seconds)
        self.reported = samples
        iter_time, rate = f"{1e3 * seconds / due.n_iterations:.2f}", due.row["n_tokens"] / seconds
        measured = {"loss": f"{mean:.6f}", "iter_time_ms": iter_time, "tokens_per_sec": f"{rate:.1f}"}
        share = self.gauges.of_peak(rate)
        measured |= {"of_peak": "" if share is None else f"{share:.4f}"}
        measured |= {name: f"{value:.6f}" for name, value in zip(self.figures, means, strict=True)}
        self.write(due.row | measured | {"memory_gb": f"{memory_gb(self.gauges.device):.3f}"})
        line = self.gauges.line(step, samples, rate, short=self.bar is not None)
        if self.bar is None:
            is_step = " (optimizer.step)" if due.is_step else ""
            more = _in_words(dict(zip(self.figures, means, strict=True)))
            print(
                f"iter {due.row['iter']} step {step}: loss {mean:.4f}{more}, iter time: {iter_time}ms{is_step}, {line}"
            )
        else:
            self.bar.update(samples - self.bar.n)
            of = f"/{self.gauges.length.n_steps}" if self.gauges.length is not None else ""
            self.bar.set_postfix_str(f"step {step}{of}, loss {mean:.4f}, {line}")

    def validated(self, step: int, loss: float, seconds: float, figures: Mapping[str, float] = {}) -> None:
        """Records a validation; loss and figures are means over its terms. Call `report` before the validation."""
        self.paused(seconds)
        self.gauges.validations.add(seconds)
        found = {f"val_{name}": f"{value:.6f}" for name, value in {"loss": loss, **figures}.items()}
        self.write({"iter": self.iter, "step": step, "samples": self.samples, **found})
        more = _in_words(figures)
        self.say(f"iter {self.iter} step {step}: val loss {loss:.4f}{more}, val time: {1e3 * seconds:.2f}ms")

    def saved(self, seconds: float) -> None:
        """Records a save. Call `report` before it."""
        self.paused(seconds)
        self.gauges.saves.add(seconds)

    def paused(self, seconds: float) -> None:
        """Excludes a pause from the time of the next iteration."""
        self.since_line += seconds

    def begin(self) -> None:
        """Starts the clock of the first iteration."""
        self.since_line = time.perf_counter()

    def write(self, row: dict[str, Any]) -> None:
        """Writes a line of metrics.csv, and its figures to the logger; an error of the disk is said once."""
        if self.metrics is None:
            return
        self.metrics.add({"seconds": f"{time.perf_counter() - self.start:.2f}", **row})
        if self.logger is None:
            return
        try:
            self.logger.log_metrics(figures(row), int(row["step"]))
            self.logs = True
        except OSError as e:
            if self.logs:
                self.say(f"--logger could not write its figures ({reason(e)}); the run goes on, and {METRICS} has all")
            self.logs = False

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self.bar is None:
            print(line)
        else:
            self.bar.write(line)

    def close(self) -> float:
        """Closes the bar, and writes what waits; returns the seconds since the start."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        if self.metrics is None:
            return time.perf_counter() - self.start
        self.metrics.write()
        if self.metrics.waiting:
            self.say(f"{METRICS} lacks its last lines, for which the disk had no room")
        if self.logger is not None:
            with going_on("what --logger shows", self.say):
                self.logger.finalize("success")
        return time.perf_counter() - self.start


def _in_words(figures: Mapping[str, float]) -> str:
    """Returns figures as they stand in a line of the log."""
    return "".join(f", {name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())


def _has_columns(stream: TextIO) -> bool:
    """Returns whether a bar can be drawn in this stream; a terminal in a container may have no width."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:
        return False


def plot_losses(metrics: Path, picture: Path) -> Path:
    """Plots training and validation loss over the optimizer steps; returns the path of the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = read_metrics(metrics)
    train, val = dict(found.by_step("loss", found.terms)), dict(found.column("val_loss"))
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(list(train), list(train.values()), color="#4477aa", linewidth=1.2, label="training")
    axes.plot(list(val), list(val.values()), color="#cc3311", marker="o", markersize=4, label="validation")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss per target token (nats)" if found.terms == "n_targets" else "loss per row")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    replace_with(picture, lambda path: figure.savefig(path, dpi=120, format=picture.suffix[1:]))
    plt.close(figure)
    return picture
