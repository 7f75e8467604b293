"""The folder of a run: what is in it, and whether a new one may have it."""

from pathlib import Path

from lit_gpt.args.folders import RUN, require_no_results, results_of
from lit_gpt.checkpoints.trained import BEST, CHECKPOINTS
from lit_gpt.files import remove, temporary_beside
from lit_gpt.report.page import REPORT
from lit_gpt.training.run.budget import LEDGER
from lit_gpt.training.run.metrics import METRICS
from lit_gpt.training.run.monitor import CURVE

MERGED = "merged"
"""Folder of the merged checkpoint within that of the run."""
PLAN = "plan.json"
"""File with what the run was planned to take, and what it took."""
RECORDS = (RUN, METRICS, CURVE, REPORT, PLAN, LEDGER, CHECKPOINTS, BEST)
"""Files that are of no use without the results."""


def claim_out_dir(out_dir: Path, overwrite: bool) -> None:
    """Makes the folder of a run, without what an earlier run left there; other files stay.

    Results of an earlier run are deleted only if `overwrite` is set; records of one that was stopped before its first
    checkpoint always are.

    Raises:
        UserError: the folder has results of another run, and `overwrite` is not set.
    """
    if not overwrite:
        require_no_results(out_dir)
    checkpoints = out_dir / CHECKPOINTS
    if checkpoints.is_dir() and not checkpoints.is_symlink():  # at once: no part of them is ever taken for a run
        doomed = temporary_beside(checkpoints)
        checkpoints.replace(doomed)
        remove(doomed)
    for path in (*results_of(out_dir), *(out_dir / name for name in RECORDS)):
        remove(path)
    out_dir.mkdir(parents=True, exist_ok=True)
