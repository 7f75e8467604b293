"""Opens the sources of a mixture as tokens: prepared ones as they are, files of rows after preparing them."""

import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.args import PrepareArgs
from lit_gpt.args.curation import AugmentArgs, MixArgs
from lit_gpt.args.folders import require_checkpoint
from lit_gpt.checkpoints.configs import read_config
from lit_gpt.data import store
from lit_gpt.data.curate.augment import augmented
from lit_gpt.data.prepare.account import Counts, Part, Scan, print_unused
from lit_gpt.data.prepare.arrow import holds_rows
from lit_gpt.data.prepare.run import Files, describe, rows_of, selected, with_style, write_split
from lit_gpt.data.prepare.split import held_out
from lit_gpt.data.prepare.tokens import Encoder
from lit_gpt.errors import UserError
from lit_gpt.files.whole import temporary_beside
from lit_gpt.prompts.wording import wording_of
from lit_gpt.tokenizer import Tokenizer

SAME = ("tokenizer", "prompt_style", "chat_template", "mask_inputs", "last_turn_only")
"""Keys of meta.json whose values must be the same in all sources of a mixture."""


@dataclass(frozen=True)
class Source:
    """A source of a mixture, tokenized."""

    path: Path
    train: store.Samples
    val: store.Samples
    meta: dict[str, Any]
    made: Counter[str] = field(default_factory=Counter)
    """Number of rows that augmentation made, by kind."""


def open_sources(
    folder: Path,
    args: MixArgs,
    augment: AugmentArgs,
    prepare_args: PrepareArgs,
    checkpoint_dir: Path | None,
    stack: ExitStack,
) -> dict[str, Source]:
    """Returns all sources as tokens; raw ones are tokenized into a temporary folder that `stack` removes.

    Raises:
        UserError: a source is missing or damaged, or the sources were not prepared alike.
    """
    asked = args.sources or {}
    for name, path in asked.items():
        if not path.exists():
            raise UserError(f"--sources: {name} is not there: {path}")
    ready = {name: path for name, path in asked.items() if _is_prepared(path)}
    opened = {name: Source(path, *store.load(path)) for name, path in ready.items()}
    raw = {name: path for name, path in asked.items() if name not in ready}
    if augment.any and not raw:
        raise UserError("augmentation works on rows of text, and all --sources are prepared; name their files instead")
    if opened:
        require_same(opened)  # before raw sources are tokenized, which may take long
    if raw:
        tokenizer_dir = checkpoint_dir or next((Path(s.meta["checkpoint_dir"]) for s in opened.values()), None)
        if tokenizer_dir is None:
            raise UserError("--checkpoint_dir is missing: a raw source needs its tokenizer")
        require_checkpoint(tokenizer_dir)
        prepare_args = _styled(prepare_args, opened, raw, tokenizer_dir)
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = temporary_beside(folder.with_name(f"{folder.name}.sources"))
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        work.mkdir()
        for name, path in raw.items():
            opened[name] = _tokenized(
                name,
                path,
                folder=work / str(len(opened)),
                checkpoint_dir=tokenizer_dir,
                augment=augment,
                args=prepare_args,
            )
    sources = {name: opened[name] for name in asked}
    require_same(sources)
    return sources


def _is_prepared(path: Path) -> bool:
    """Returns whether a source is a folder of prepared data, or was meant as one."""
    return path.is_dir() and ((path / store.META).is_file() or not holds_rows(path))


def _styled(
    args: PrepareArgs, ready: Mapping[str, Source], raw: Mapping[str, Path], checkpoint_dir: Path
) -> PrepareArgs:
    """Returns the arguments with one prompt style for all raw sources: that of the prepared ones, else a default.

    The default depends on whether any raw source has conversations.

    Raises:
        UserError: a row is not of its schema.
    """
    if args.prompt_style is None and ready:
        return replace(args, prompt_style=next(iter(ready.values())).meta["prompt_style"])
    is_chat = args.prompt_style is None and any(row.is_chat for row in rows_of(Files(tuple(raw.values())), args))
    return with_style(args, is_chat, checkpoint_dir)


def _tokenized(
    name: str, path: Path, folder: Path, checkpoint_dir: Path, augment: AugmentArgs, args: PrepareArgs
) -> Source:
    """Splits a file of rows, augments the training part and tokenizes both; raises UserError for a bad row."""
    tokenizer = Tokenizer(checkpoint_dir)
    block_size = read_config(checkpoint_dir).block_size
    encoder = Encoder(tokenizer, args, min(args.max_seq_length or block_size, block_size))
    scan, files = Scan(), Files((path,))
    for row in rows_of(files, args, scan.left_out):
        scan.add(row, with_prompt=True)
    print_unused(scan.unused)
    is_val = held_out(scan.prompts, args.test_split_fraction, args.seed, scan.systems)
    made: Counter[str] = Counter()
    train = augmented(selected(rows_of(files, args), ~is_val), augment, f"{args.seed}:{name}", made)
    val = selected(rows_of(files, args), is_val)
    n_val = int(is_val.sum())
    print(f"{name}: {scan.n_rows:,} rows of {path}")
    folder.mkdir()
    parts: dict[str, Part] = {}
    amounts = (("train", train, scan.n_rows - n_val, scan.left_out), ("val", val, n_val, Counter()))
    for split, rows, n_rows, missing in amounts:
        counts = Counts(read=missing.total(), dropped=Counter(missing))
        parts[split] = write_split(folder, split, rows=rows, n_rows=n_rows, encoder=encoder, counts=counts)
    meta = describe(files, None, checkpoint_dir, encoder=encoder, parts=parts, unused=scan.unused)
    train_data, val_data = (
        store.Samples(*(np.load(folder / f"{s}.{p}.npy", mmap_mode="r") for p in ("ids", "labels", "offsets")))
        for s in ("train", "val")
    )
    return Source(path, train_data, val_data, meta=meta, made=made)


def require_same(sources: Mapping[str, Source]) -> None:
    """Checks that all sources have the same tokenizer, prompt style and masking; raises UserError if not."""
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
        if wording_of(one.meta) != wording_of(other.meta):  # one of them was prepared by another version
            raise UserError(
                f"--sources: the prompt style {one.meta['prompt_style']} wrote other texts in the version that "
                f"prepared {first} than in that of {name}; prepare both with this version, or name their files instead"
            )
