"""Where the figures of a run go besides metrics.csv: TensorBoard or Weights & Biases, by Fabric's loggers."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from lit_gpt.errors import UserError

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""Value of --logger -> the package that it needs."""


class Logger(Protocol):
    """What we ask of one of Fabric's."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def finalize(self, status: str) -> None: ...


def require_logger(kind: str) -> None:
    """Checks that the package of a logger is installed.

    Raises:
        UserError: it is not.
    """
    package = _PACKAGES.get(kind)
    if package and find_spec(package) is None:
        raise UserError(f'--logger {kind} needs the package {package}; run: pip install -e ".[loggers]"')


def make_logger(kind: str, out_dir: Path, settings: dict[str, Any] | None = None) -> Logger | None:
    """Returns one of Fabric's loggers that writes to `out_dir`; None for csv, which the monitor writes itself.

    Args:
        settings: settings of the run, to be shown beside its figures.

    Raises:
        UserError: a package is missing.
    """
    require_logger(kind)
    if kind == "tensorboard":
        from lightning.fabric.loggers import TensorBoardLogger

        return TensorBoardLogger(out_dir, name="tensorboard", version="")
    if kind == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        logger = WandbLogger(name="-".join(out_dir.parts[-2:]), save_dir=out_dir, project="lit-gpt")
        logger.log_hyperparams(settings or {})
        return logger
    return None


def figures(row: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line of metrics.csv that are worth a curve."""
    names = ("loss", "val_loss", "learning_rate", "tokens_per_sec", "of_peak", "memory_gb")
    return {name: float(row[name]) for name in names if row.get(name) not in (None, "")}
