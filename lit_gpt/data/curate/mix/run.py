"""Several sources as one prepared data set: how much of each, drawn by seed, with the recipe in meta.json."""

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


def mix(folder: Path, args: MixArgs, augment: AugmentArgs, prepare: PrepareArgs, checkpoint_dir: Path | None) -> None:
    """Write the mixture of `args` to `folder`, check it, and print what went into it.

    Each source keeps its own validation part: all of these rows are in that of the mixture, one source after the
    other. What another source has nearly the same in its training part is left out there.

    Args:
        prepare: how raw sources become tokens.
        checkpoint_dir: for raw sources; None is the one that the prepared sources name.

    Raises:
        UserError: sources that are not there or do not go together, amounts that leave nothing, a source or
            another data set in the folder's place.
    """
    for name, path in args.sources.items():
        if path.resolve() == folder.resolve():
            raise UserError(f"--destination_path {folder} is the source {name}; pass another folder")
    store.require_room(folder, prepare.overwrite)
    with ExitStack() as stack:
        sources = open_sources(
            folder, args, augment=augment, prepare=prepare, checkpoint_dir=checkpoint_dir, stack=stack
        )
        first = next(iter(sources.values()))
        usable_rows = usable(sources, tokenizer_of(first.path, first.meta, checkpoint_dir))
        available = {name: len(rows) for name, rows in usable_rows.items()}
        amounts = shares(available, args)
        rows = {name: draw(available[name], n, f"{prepare.seed}:{name}") for name, n in amounts.items()}
        splits = {
            "train": [(sources[name].train, usable_rows[name][picked]) for name, picked in rows.items()],
            "val": [(source.val, np.arange(len(source.val))) for source in sources.values()],
        }
        select.write(
            folder, splits, recipe(sources, available, amounts=amounts, args=args, augment=augment, seed=prepare.seed)
        )
        _print_amounts(sources, available, amounts)
    print(f"Saved to {folder}")
    if prepare.check:
        check(folder, checkpoint_dir=checkpoint_dir)


def _print_amounts(sources: Mapping[str, Source], available: Mapping[str, int], amounts: Mapping[str, int]) -> None:
    """A line for each source."""
    for name, n in amounts.items():
        source = sources[name]
        again = f", {n / available[name]:.1f} times each" if n > available[name] else ""
        made = f" ({', '.join(f'{k:,} made with {kind}' for kind, k in source.made.items())})" if source.made else ""
        leaks = len(source.train) - available[name]
        left_out = f", {leaks:,} left out that another source nearly has for validation" if leaks else ""
        amount = f"{n:,} of {available[name]:,} training rows{again}{made}"
        print(f"{name}: {amount}, {len(source.val):,} for validation{left_out}")
