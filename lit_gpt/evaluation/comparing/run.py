"""A comparison from the command line to its files."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_gpt.args import EvalArgs
from lit_gpt.errors import UserError
from lit_gpt.evaluation.comparing.models import Asked, ask_all, check_runs, style_of
from lit_gpt.evaluation.comparing.page import as_json, explained, text_table, write_page
from lit_gpt.evaluation.comparing.verdicts import Comparison, compare
from lit_gpt.evaluation.run import write_json
from lit_gpt.evaluation.tasks import prepare
from lit_gpt.lightning import Fabric

_JSON, _PAGE = "comparison.json", "comparison.html"
"""Files in the output folder."""


def run_comparison(
    fabric: Fabric,
    checkpoint_dir: Path,
    folders: Sequence[Path],
    args: EvalArgs,
    *,
    quantize: str | None,
    out_dir: Path,
) -> dict[str, list[Comparison]]:
    """Prints how runs differ from their base, writes it to `out_dir`, and returns it by run.

    Args:
        quantize: see `ask_all`.

    Raises:
        UserError: no such checkpoint, run or task, or they do not go together.
    """
    if args.save_filepath is not None:
        raise UserError(f"--save_filepath {args.save_filepath}: a comparison is written to --out_dir")
    if out_dir.is_file():
        raise UserError(f"--out_dir {out_dir} is a file; pass a folder")
    records = check_runs(folders, checkpoint_dir)
    style = style_of(args, folders, checkpoint_dir)
    args = replace(args, log_samples=True, save_filepath=None)
    tasks = prepare(args)
    out_dir.mkdir(parents=True, exist_ok=True)
    asked = ask_all(fabric, checkpoint_dir, records, tasks=tasks, args=args, style=style, quantize=quantize)
    base = next(asked)
    found, notes = _compared(base, asked)
    about = {
        "checkpoint_dir": checkpoint_dir, "tasks": ", ".join(args.eval_tasks), "num_fewshot": args.num_fewshot,
        "limit": args.limit, "prompt_style": style, "quantize": quantize,
    }  # fmt: skip
    write_json(
        out_dir / _JSON, as_json(found, notes, {k: str(v) if isinstance(v, Path) else v for k, v in about.items()})
    )
    write_page(out_dir / _PAGE, found, notes, about)
    for run, comparisons in found.items():
        print(f"{run} against its base\n{text_table(comparisons)}\n")
    for text in [*notes, *explained(found), f"Every question that changed: {out_dir / _JSON}, {out_dir / _PAGE}"]:
        print(text)
    return found


def _compared(base: Asked, runs: Iterator[Asked]) -> tuple[dict[str, list[Comparison]], list[str]]:
    """Returns the comparisons of each run with the base, and notes."""
    found: dict[str, list[Comparison]] = {}
    notes: dict[str, None] = {}
    first = base.results
    for run in runs:
        found[run.name], told = compare(
            first["samples"], run.results["samples"], first["higher_is_better"], _groups(first)
        )
        notes |= dict.fromkeys(told)
    return found, list(notes)


def _groups(results: dict[str, Any]) -> dict[str, list[str]]:
    """Returns the tasks of each group, those of the groups in it, too."""
    members: dict[str, list[str]] = results.get("group_subtasks", {})

    def leaves(name: str) -> list[str]:
        return [leaf for child in members[name] for leaf in leaves(child)] if members.get(name) else [name]

    return {group: leaves(group) for group, children in members.items() if children}
