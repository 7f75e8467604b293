"""What a run reached, by the figures in its folder."""

from pathlib import Path

from lit_gpt.report.metrics import read_metrics
from lit_gpt.training.run.metrics import METRICS


def final_loss(run_dir: Path) -> float | None:
    """Returns the last validation loss of a run, per target token; None if its folder has no figures."""
    path = run_dir / METRICS
    losses = read_metrics(path).column("val_loss") if path.is_file() else []
    return losses[-1][1] if losses else None
