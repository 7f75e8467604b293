"""What makes a run learn from graded answers of the model's own: its objective and its batch loader."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.args.rollouts import CheckerArgs
from lit_gpt.grading.checkers import checker_of
from lit_gpt.lightning import Fabric
from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.rollouts.drawing import Drawing
from lit_gpt.rollouts.loader import RolloutLoader
from lit_gpt.rollouts.objective import GrpoObjective
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.training.loader import BatchLoader

_ROLLOUTS = "rollouts"
"""Folder in a run's with the answers that several steps learn from."""


def learning_from_answers(
    fabric: Fabric, args: FinetuneArgs, meta: dict[str, Any], *, grpo: GrpoArgs, check: CheckerArgs, team: Team = ALONE
) -> tuple[GrpoObjective, Callable[..., BatchLoader]]:
    """Returns the objective of a run on graded answers, and what makes its batch loader.

    Args:
        meta: meta.json of the data.
        team: the processes that draw and train together.

    Raises:
        UserError: the checker cannot be used.
    """
    tokenizer = Tokenizer(args.checkpoint_dir)
    end_ids = meta.get("end_ids") or [tokenizer.eos_id]
    drawing = Drawing(tokenizer, checker_of(check), grpo, end_ids=end_ids, autocast=fabric.autocast, team=team)
    return GrpoObjective(drawing), partial(RolloutLoader, drawing=drawing, folder=args.out_dir / _ROLLOUTS)
