"""The data set that a run is validated on by itself, after its training."""

from pathlib import Path

from lit_gpt.checkpoints.runs import Run
from lit_gpt.errors import UserError


def validated_on(run: Run | None, run_dir: Path | None) -> tuple[Path, str]:
    """Returns the folder of a run's own data, and a note if the run itself measured something else on it.

    Args:
        run: the record of the run in `run_dir`; None for a pretrained model.

    Raises:
        UserError: it has no data, or data without a loss of next tokens.
    """
    folder = run.data.get("folder") if run else None
    if run is None or folder is None:
        whose = f"the adapter that {run_dir} was made of names no" if run else "a pretrained model has no"
        raise UserError(f"--data_dir is missing; {whose} data")
    if run.script == "preference":
        raise UserError(
            f"{run_dir} learned from preferences, whose loss and margins are in its metrics.csv; --data_dir takes a "
            "data set of rows, such as that of an SFT run"
        )
    note = "; the run itself was validated by the rewards of its own answers" if run.script == "grpo" else ""
    return Path(folder), note
