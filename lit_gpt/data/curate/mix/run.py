"""Mixes several sources into one prepared data set, drawn by seed, with the recipe in meta.json."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from lit_gpt.args import PrepareArgs
from lit_gpt.args.curation import AugmentArgs, MixArgs
from lit_gpt.data import store
from lit_gpt.data.curate import select
from lit_gpt.data.curate.check import check
from lit_gpt.data.curate.check.run import tokenizer_of
from lit_gpt.data.curate.mix.amounts import draw, shares
from lit_gpt.data.curate.mix.leaks import usable
from lit_gpt.data.curate.mix.recipe import recipe
from lit_gpt.data.curate.mix.sources import Source, open_sources
from lit_gpt.errors import UserError
from lit_gpt.files import only_writer


def mix(
    folder: Path, args: MixArgs, augment: AugmentArgs, prepare_args: PrepareArgs, checkpoint_dir: Path | None
) -> None:
    """Writes the mixture of `args` to `folder`, checks it, and prints how much of each source went into it.

    The validation set of the mixture holds all validation rows of all sources, one source after the other. Training
    rows that are near-duplicates of another source's validation rows are left out.

    Args:
        prepare_args: how raw sources are tokenized.
        checkpoint_dir: checkpoint for raw sources; None takes the one that the prepared sources name.

    Raises:
        UserError: sources are missing or do not go together, the amounts leave no rows, or `folder` is one of the
            sources or holds another data set.
    """
    for name, path in (args.sources or {}).items():
        if path.resolve() == folder.resolve():
            raise UserError(f"--destination_path {folder} is the source {name}; pass another folder")
    with ExitStack() as stack:
        stack.enter_context(only_writer(folder))
        store.require_room(folder, prepare_args.overwrite)
        sources = open_sources(
            folder, args, augment=augment, prepare_args=prepare_args, checkpoint_dir=checkpoint_dir, stack=stack
        )
        first = next(iter(sources.values()))
        usable_rows = usable(sources, tokenizer_of(first.path, first.meta, checkpoint_dir))
        available = {name: len(rows) for name, rows in usable_rows.items()}
        amounts = shares(available, args)
        rows = {name: draw(available[name], n, f"{prepare_args.seed}:{name}") for name, n in amounts.items()}
        splits = {
            "train": [(sources[name].train, usable_rows[name][picked]) for name, picked in rows.items()],
            "val": [(source.val, np.arange(len(source.val))) for source in sources.values()],
        }
        select.write(
            folder,
            splits,
            recipe(sources, available, amounts=amounts, args=args, augment=augment, seed=prepare_args.seed),
        )
        _print_amounts(sources, available, amounts)
    print(f"Saved to {folder}")
    if prepare_args.check:
        check(folder, checkpoint_dir=checkpoint_dir)


def _print_amounts(sources: Mapping[str, Source], available: Mapping[str, int], amounts: Mapping[str, int]) -> None:
    """Prints a line for each source."""
    for name, n in amounts.items():
        source = sources[name]
        again = f", {n / available[name]:.1f} times each" if n > available[name] else ""
        made = f" ({', '.join(f'{k:,} made with {kind}' for kind, k in source.made.items())})" if source.made else ""
        leaks = len(source.train) - available[name]
        left_out = f", {leaks:,} left out that another source nearly has for validation" if leaks else ""
        amount = f"{n:,} of {available[name]:,} training rows{again}{made}"
        print(f"{name}: {amount}, {len(source.val):,} for validation{left_out}")
