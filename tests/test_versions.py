"""A run that an earlier version of this toolkit began goes on with this one, and what really changed is refused."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from runs import ARGS, run_of

from lit_gpt.args import TrainArgs, ValidationArgs
from lit_gpt.args.training import free_flags
from lit_gpt.checkpoints.runs import read_run, save_run
from lit_gpt.errors import UserError
from lit_gpt.training.run.resume import require_same


@pytest.mark.parametrize("method", ARGS)
def test_a_flag_that_came_later_had_its_default_before(method):
    """Each flag by itself is taken out of the record, as in one that was written before there was such a flag."""
    run = run_of(method)
    for part, values in (("training", TrainArgs()), ("training", ValidationArgs()), ("method_args", ARGS[method])):
        for name, default in asdict(values).items():
            older = replace(run, **{part: {k: v for k, v in getattr(run, part).items() if k != name}})
            require_same(run, older, allow_changes=False)
            other = replace(run, **{part: getattr(run, part) | {name: "another"}})
            if name in free_flags(TrainArgs, ValidationArgs):
                require_same(other, older, allow_changes=False)
                continue
            with pytest.raises(UserError, match=f"{name} was {default!r} and is 'another'"):
                require_same(other, older, allow_changes=False)


def test_what_the_record_says_is_compared_as_it_is_written(tmp_path):
    """Such as a path, which is text there."""
    run = run_of("lora", best_task="mine", best_task_data=Path("rows.jsonl"), epochs=3)
    save_run(run, tmp_path)
    require_same(run, read_run(tmp_path), allow_changes=False)
    with pytest.raises(UserError, match=r"best_task_data was 'rows.jsonl' and is 'others.jsonl'; --allow"):
        other = replace(run, training=run.training | {"best_task_data": Path("others.jsonl")})
        require_same(other, read_run(tmp_path), allow_changes=False)
