"""Several sources as one prepared data set: how much of each, drawn by seed, with the recipe in meta.json."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lit_gpt.args import PrepareArgs
from lit_gpt.args.checks import AugmentArgs, MixArgs
from lit_gpt.convert.lit import read_config, require_checkpoint
from lit_gpt.data import select, store
from lit_gpt.data.augment import augmented
from lit_gpt.data.check import check
from lit_gpt.data.prepare import Files, Part, describe, rows_of, write_split
from lit_gpt.data.split import held_out, prompt_of
from lit_gpt.data.tokens import Counts, Encoder
from lit_gpt.errors import UserError
from lit_gpt.tokenizer import Tokenizer

SAME = ("tokenizer", "prompt_style", "chat_template", "mask_inputs", "last_turn_only")
"""What the sources of a mixture must have in common, in the words of meta.json."""


@dataclass(frozen=True)
class Source:
    """A source as tokens."""

    path: Path
    train: store.Samples
    val: store.Samples
    meta: dict[str, Any]
    made: Counter[str] = field(default_factory=Counter)
    """Rows that augmentation made, by kind."""


def mix(folder: Path, args: MixArgs, augment: AugmentArgs, prepare: PrepareArgs, checkpoint_dir: Path | None) -> None:
    """Write the mixture of `args` to `folder`, check it, and print what went into it.

    Each source keeps its own validation part: all of these rows are in that of the mixture, one source after the
    other, and none of them is in the training set.

    Args:
        prepare: how raw sources become tokens.
        checkpoint_dir: for raw sources; None is the one that the prepared sources name.

    Raises:
        UserError: sources that are not there or do not go together, amounts that leave nothing.
    """
    with ExitStack() as stack:
        sources = open_sources(folder, args, augment, prepare, checkpoint_dir, stack)
        require_same(sources)
        available = {name: len(source.train) for name, source in sources.items()}
        amounts = shares(available, args)
        rows = {name: draw(available[name], n, f"{prepare.seed}:{name}") for name, n in amounts.items()}
        splits = {
            "train": [(sources[name].train, picked) for name, picked in rows.items()],
            "val": [(source.val, np.arange(len(source.val))) for source in sources.values()],
        }
        select.write(folder, splits, recipe(sources, amounts, args, augment, prepare.seed))
        for name, n in amounts.items():
            again = f", {n / available[name]:.1f} times each" if n > available[name] else ""
            made = f" ({', '.join(f'{k:,} made with {kind}' for kind, k in sources[name].made.items())})"
            print(
                f"{name}: {n:,} of {available[name]:,} training rows{again}{made if sources[name].made else ''}, "
                f"{len(sources[name].val):,} for validation"
            )
    print(f"Saved to {folder}")
    if prepare.check:
        check(folder, checkpoint_dir=checkpoint_dir)


def shares(available: Mapping[str, int], args: MixArgs) -> dict[str, int]:
    """Training rows of each source. Raises: UserError if there are none."""
    most = {name: min(n, (args.caps or {}).get(name, n)) for name, n in available.items()}
    if not args.weights:
        sizes = args.sizes or {}
        caps = args.caps or {}
        return {name: min(sizes.get(name, n), caps.get(name, sizes.get(name, n))) for name, n in available.items()}
    total = sum(args.weights.values())
    parts = {name: weight / total for name, weight in args.weights.items()}
    size = args.size or int(min(most[name] / part for name, part in parts.items()) + 1e-9)
    amounts = {name: int(size * part + 1e-9) for name, part in parts.items()}
    for name in sorted(parts, key=lambda n: amounts[n] - size * parts[n])[: size - sum(amounts.values())]:
        amounts[name] += 1  # those that lost most by rounding
    amounts = {name: min(n, (args.caps or {}).get(name, n)) for name, n in amounts.items()}
    if not any(amounts.values()):
        raise UserError(f"--weights {args.weights} leave no rows of {dict(available)}; pass --size")
    return amounts


def draw(available: int, n: int, seed: str) -> np.ndarray:
    """(n,) int64: n of the rows in order; all of them as often as they fit, and some once more."""
    rng = np.random.default_rng(list(seed.encode()))
    again, rest = divmod(n, available)
    once_more = np.sort(rng.choice(available, rest, replace=False))
    return np.sort(np.concatenate([np.tile(np.arange(available), again), once_more]).astype(np.int64))


def open_sources(
    folder: Path,
    args: MixArgs,
    augment: AugmentArgs,
    prepare: PrepareArgs,
    checkpoint_dir: Path | None,
    stack: ExitStack,
) -> dict[str, Source]:
    """All sources as tokens; raw ones are tokenized into a folder that lives as long as `stack`. Raises: UserError."""
    for name, path in args.sources.items():
        if not path.exists():
            raise UserError(f"--sources: {name} is not there: {path}")
    ready = {name: path for name, path in args.sources.items() if path.is_dir()}
    opened = {name: Source(path, *store.load(path)) for name, path in ready.items()}
    raw = {name: path for name, path in args.sources.items() if name not in ready}
    if augment.any and not raw:
        raise UserError("augmentation works on rows of text, and all --sources are prepared; name their files instead")
    if raw:
        place = checkpoint_dir or next((Path(s.meta["checkpoint_dir"]) for s in opened.values()), None)
        if place is None:
            raise UserError("--checkpoint_dir is missing: a raw source needs its tokenizer")
        require_checkpoint(place)
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(stack.enter_context(TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.")))
        for name, path in raw.items():
            opened[name] = tokenized(name, path, work / str(len(opened)), place, augment, prepare)
    return {name: opened[name] for name in args.sources}


def tokenized(
    name: str, path: Path, folder: Path, checkpoint_dir: Path, augment: AugmentArgs, args: PrepareArgs
) -> Source:
    """A file of rows as tokens: split, the training part augmented. Raises: UserError."""
    tokenizer = Tokenizer(checkpoint_dir)
    block_size = read_config(checkpoint_dir).block_size
    encoder = Encoder(tokenizer, args, min(args.max_seq_length or block_size, block_size))
    left_out: Counter[str] = Counter()
    files = Files((path,))
    rows = list(rows_of(files, args, left_out))
    out = held_out([prompt_of(row) for row in rows], args.test_split_fraction, args.seed)
    made: Counter[str] = Counter()
    kept = (row for row, held in zip(rows, out, strict=True) if not held)
    train = list(augmented(kept, augment, f"{args.seed}:{name}", made))
    val = [r for r, held in zip(rows, out, strict=True) if held]
    print(f"{name}: {len(rows):,} rows of {path}")
    folder.mkdir()
    parts: dict[str, Part] = {}
    for split, part, missing in (("train", train, left_out), ("val", val, Counter())):
        counts = Counts(read=missing.total(), dropped=Counter(missing))
        parts[split] = write_split(folder, split, iter(part), len(part), encoder, counts)
    meta = describe(files, None, checkpoint_dir, encoder, parts)
    samples = [
        store.Samples(*(np.load(folder / f"{s}.{p}.npy", mmap_mode="r") for p in ("ids", "labels", "offsets")))
        for s in ("train", "val")
    ]
    return Source(path, *samples, meta, made)


def require_same(sources: Mapping[str, Source]) -> None:
    """Raises: UserError unless all sources were made for one tokenizer, in one style, with one way of masking."""
    (first, one), *others = sources.items()
    for name, other in others:
        for key in SAME:
            a, b = one.meta.get(key), other.meta.get(key)
            if a == b or (key == "last_turn_only" and bool(a) == bool(b)):
                continue
            shown = f" ({a!r} and {b!r})" if key != "chat_template" else ""
            raise UserError(
                f"--sources: {first} and {name} differ in {key}{shown}; prepare them alike, or name their files instead"
            )


def recipe(
    sources: Mapping[str, Source], amounts: Mapping[str, int], args: MixArgs, augment: AugmentArgs, seed: int
) -> dict[str, Any]:
    """What meta.json says of the mixture."""
    first = next(iter(sources.values())).meta
    entries, start = {}, 0
    for name, source in sources.items():
        stop = start + len(source.val)
        entries[name] = {
            "path": str(source.path),
            "source": source.meta.get("source"),
            "available": len(source.train),
            "train": amounts[name],
            "val": [start, stop],
            "made": dict(source.made),
            "rows": source.meta.get("rows"),
        }
        start = stop
    asked = {key: getattr(args, key) for key in ("weights", "sizes", "caps", "size")}
    return {
        "source": ", ".join(str(source.path) for source in sources.values()),
        **{key: first[key] for key in ("checkpoint_dir", *SAME) if key in first},
        "max_seq_length": max(source.meta["max_seq_length"] for source in sources.values()),
        "end_ids": sorted({i for source in sources.values() for i in source.meta.get("end_ids", [])}),
        "seed": seed,
        "rows": account(sources, amounts),
        "mix": {
            "sources": entries,
            **asked,
            "augment": asdict(augment) if augment.any else None,
        },
    }


def account(sources: Mapping[str, Source], amounts: Mapping[str, int]) -> dict[str, Any]:
    """The rows of both splits: read and repeated ones are kept or not drawn."""
    missing = {name: len(source.train) - amounts[name] for name, source in sources.items()}
    not_drawn = {f"of {name} not drawn": n for name, n in missing.items() if n > 0}
    n_train, n_val = (sum(len(getattr(s, split)) for s in sources.values()) for split in ("train", "val"))
    kept = sum(amounts.values())
    repeated = kept + sum(not_drawn.values()) - n_train
    train = {"read": n_train, "kept": kept, "dropped": not_drawn, "cut": {}, "repeated": repeated}
    return {"train": train, "val": {"read": n_val, "kept": n_val, "dropped": {}, "cut": {}}}
