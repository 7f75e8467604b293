"""Runs scripts/sample_answers.py: opens model and rows, samples, grades and writes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lit_gpt.args.rollouts import CheckerArgs, KeepArgs, SampleArgs
from lit_gpt.checkpoints.base import load_pretrained
from lit_gpt.checkpoints.runs import load_finetuned
from lit_gpt.data.prepare.sources import read_rows
from lit_gpt.errors import UserError
from lit_gpt.generation.engine import Engine
from lit_gpt.grading.checkers import checker_of
from lit_gpt.lightning import Fabric
from lit_gpt.merge.record import trained_style
from lit_gpt.prompts import open_style
from lit_gpt.rollouts.sampled import Graded, sampled
from lit_gpt.rollouts.written import write
from lit_gpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answering:
    """The model that answers."""

    checkpoint_dir: Path
    finetuned_path: Path | None = None
    prompt_style: str | None = None
    """None takes that of the training of the run, or of a merged checkpoint, or else plain."""
    quantize: str | None = None
    """Key of QUANTIZATIONS, or `none`; None takes that of the run's training."""


def sample_answers(
    fabric: Fabric,
    answering: Answering,
    path: Path,
    folder: Path,
    *,
    columns: Mapping[str, str] | None,
    check: CheckerArgs,
    sample: SampleArgs,
    keep: KeepArgs,
) -> list[Graded]:
    """Samples answers to the rows of a file, writes them to `folder`, and returns them.

    Raises:
        UserError: no such rows, model or checker, or rows without an answer that could be expected.
    """
    checker = checker_of(check)
    rows = list(read_rows(path, columns=columns))
    if without := next((row for row in rows if not row.response.strip() and check.checker != "python"), None):
        raise UserError(f"{without.where}: no answer that the checker could expect")
    end_ids: list[int] = []
    style, checkpoint_dir = answering.prompt_style, answering.checkpoint_dir
    if answering.finetuned_path is None:
        style = style or trained_style(checkpoint_dir)
        model = load_pretrained(fabric, checkpoint_dir, None if answering.quantize == "none" else answering.quantize)
    else:
        model, run = load_finetuned(fabric, checkpoint_dir, answering.finetuned_path, answering.quantize)
        style, end_ids = style or run.prompt_style, run.data.get("end_ids", [])
    tokenizer = Tokenizer(checkpoint_dir)
    opened = open_style(style or "plain", checkpoint_dir, tokenizer)
    with fabric.autocast():
        engine = Engine(model, tokenizer, max_rows=sample.max_rows, autocast=fabric.autocast)
    began, found = time.monotonic(), []
    for part in sampled(engine, opened, rows, sample, checker=checker, end_ids=end_ids):
        found += part
        n, seconds = sum(sum(g.n_tokens) for g in found), time.monotonic() - began
        print(f"{len(found):,} of {len(rows):,} prompts, {n / seconds:,.0f} tokens a second", flush=True)
    write(folder, found, keep)
    return found
