"""Prepares a data set from files: reads the rows, splits, tokenizes and stores them, and accounts for every row."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lit_gpt.args import PrepareArgs, SourceArgs
from lit_gpt.args.command import noted_command
from lit_gpt.args.folders import require_checkpoint
from lit_gpt.checkpoints.configs import read_config
from lit_gpt.data import store
from lit_gpt.data.curate.check import check
from lit_gpt.data.prepare.account import Counts, Part, Scan, in_words, print_unused, summary
from lit_gpt.data.prepare.download import locate
from lit_gpt.data.prepare.rows import Row, RowError
from lit_gpt.data.prepare.schemas import Parse
from lit_gpt.data.prepare.sources import read_entries
from lit_gpt.data.prepare.split import held_out
from lit_gpt.data.prepare.texts import Texts
from lit_gpt.data.prepare.tokens import Encoder, Pair
from lit_gpt.errors import UserError
from lit_gpt.files import only_writer
from lit_gpt.prompts import CHAT_TEMPLATE, ChatTemplate, open_style, read_template, with_kwargs
from lit_gpt.prompts.wording import WORDING, wording
from lit_gpt.tokenizer import Tokenizer

BATCH = 1000
"""Most rows that are tokenized at once."""
_BATCH_TEXT = 4 * 2**20
"""Most characters that are tokenized at once, unless one row has more."""


@dataclass(frozen=True)
class Files:
    """Files of rows, and the schema of their entries."""

    paths: tuple[Path, ...]
    parse: Parse | None = None
    """The schema of all files; None recognizes it for each file by its first entry."""


def prepare_source(
    parse: Parse | None,
    source: SourceArgs,
    folder: Path,
    checkpoint_dir: Path,
    args: PrepareArgs,
    access_token: str | None = None,
) -> None:
    """Prepares a data set from the file of `source`, which is downloaded if need be; what most prepare scripts do.

    Raises:
        UserError: see `locate` and `prepare`.
    """
    require_ready(folder, checkpoint_dir, args)  # before the download, which may take long
    path = locate(
        source.data_file, source.data_file_url, source.data_file_name, folder=folder, access_token=access_token
    )
    validation = Files((source.validation_file,), parse) if source.validation_file else None
    prepare(Files((path,), parse), validation, folder, checkpoint_dir=checkpoint_dir, args=args)


def prepare(
    train: Files,
    validation: Files | None,
    folder: Path,
    checkpoint_dir: Path,
    args: PrepareArgs,
    encoder: type[Encoder] = Encoder,
) -> None:
    """Tokenizes the rows of `train` for the model of `checkpoint_dir`, stores them in `folder` and prints an account.

    The files are read twice: once to their end before anything is written, and once to be tokenized in batches, so
    neither rows nor tokens have to fit in memory. Only the prompts do, where part of `train` is held out.

    Args:
        validation: the rows to validate on; None holds out part of the rows of `train`.
        encoder: makes samples of the rows.

    Raises:
        UserError: rows are not of their schema, or none are left to train or to validate on; there is no such prompt
            style or checkpoint; or, once the data is stored, the check finds that training on it would be useless.
    """
    with only_writer(folder):
        _prepare(train, validation, folder, checkpoint_dir=checkpoint_dir, args=args, encoder_class=encoder)
    print(f"Saved to {folder}")
    if args.check:
        check(folder, checkpoint_dir=checkpoint_dir)


def _prepare(
    train: Files,
    validation: Files | None,
    folder: Path,
    checkpoint_dir: Path,
    args: PrepareArgs,
    encoder_class: type[Encoder],
) -> None:
    """Writes a prepared data set into `folder`, where nobody else writes."""
    require_ready(folder, checkpoint_dir, args)
    tokenizer = Tokenizer(checkpoint_dir)
    scan = _read_all(train, args, with_prompts=validation is None)
    print_unused(scan.unused)
    args = with_style(args, scan.n_chat > 0, checkpoint_dir)
    block_size = read_config(checkpoint_dir).block_size
    encoder = encoder_class(tokenizer, args, min(args.max_seq_length or block_size, block_size))
    if validation is None:
        is_val = held_out(scan.prompts, args.test_split_fraction, args.seed, scan.systems)
        scan.prompts, scan.systems = Texts(), Texts()
        n_train, n_val, left_out = int((~is_val).sum()), int(is_val.sum()), (scan.left_out, Counter())
        sources = (selected(rows_of(train, args), ~is_val), selected(rows_of(train, args), is_val))
    else:
        second = _read_all(validation, args, with_prompts=False)
        print_unused({key: n for key, n in second.unused.items() if key not in scan.unused})
        n_train, n_val, left_out = scan.n_rows, second.n_rows, (scan.left_out, second.left_out)
        sources = (rows_of(train, args), rows_of(validation, args))
    print(f"train has {n_train:,} rows, val has {n_val:,}")
    with store.replacing(folder) as temporary:
        parts = {}
        for name, rows, n, missing in zip(("train", "val"), sources, (n_train, n_val), left_out, strict=True):
            counts = Counts(read=missing.total(), dropped=Counter(missing))
            parts[name] = write_split(temporary, name, rows=rows, n_rows=n, encoder=encoder, counts=counts)
        meta = describe(train, validation, checkpoint_dir, encoder=encoder, parts=parts, unused=scan.unused)
        store.save_meta(temporary, meta)


def require_ready(folder: Path, checkpoint_dir: Path, args: PrepareArgs) -> None:
    """Checks that a data set can be prepared, before anything is downloaded or read.

    Raises:
        UserError: there is no such checkpoint or prompt style, or the folder holds a data set that may not be replaced.
    """
    require_checkpoint(checkpoint_dir)
    store.require_room(folder, args.overwrite)
    if args.prompt_style is not None:
        open_style(with_kwargs(args.prompt_style, args.template_kwargs), checkpoint_dir)


def with_style(args: PrepareArgs, is_chat: bool, checkpoint_dir: Path) -> PrepareArgs:
    """Returns the arguments with a prompt style: the one given, else a default for such rows, which is printed."""
    if args.prompt_style is not None:
        return args
    if not is_chat:
        return replace(args, prompt_style="alpaca")
    name = checkpoint_dir.absolute().name
    try:
        read_template(checkpoint_dir)
        style, why = CHAT_TEMPLATE, f"the rows are conversations, and {name} has a chat template"
    except UserError:
        style, why = "vicuna", f"the rows are conversations, and {name} has no chat template"
    print(f"prompt style: {style} ({why}); --prompt_style takes another one, such as alpaca")
    return replace(args, prompt_style=style)


def _read_all(files: Files, args: PrepareArgs, with_prompts: bool) -> Scan:
    """Reads all rows and returns what they hold; raises UserError at the first bad row, or if there are none."""
    scan = Scan()
    for row in rows_of(files, args, scan.left_out):
        scan.add(row, with_prompts)
    if not scan.n_rows:
        reason = f" ({in_words(scan.left_out)})" if scan.left_out else ""
        raise UserError(f"{', '.join(map(str, files.paths))} has no rows{reason}")
    return scan


def rows_of(files: Files, args: PrepareArgs, left_out: Counter[str] | None = None) -> Iterator[Row]:
    """Yields the rows of all files; entries that give none are counted in `left_out`.

    Raises:
        UserError: an entry is not of its schema, with `--bad_rows error`, or a file is damaged.
    """
    left_out = Counter() if left_out is None else left_out
    for path in files.paths:
        for rows in read_entries(path, files.parse, args.bad_rows == "drop"):
            if isinstance(rows, UserError):
                left_out[rows.reason if isinstance(rows, RowError) else "not of the schema"] += 1
                continue
            yield from rows
            if not rows:
                left_out["no conversation in the entry"] += 1


def selected(rows: Iterator[Row], mask: np.ndarray) -> Iterator[Row]:
    """Returns the rows that the mask selects."""
    return (row for row, selected in zip(rows, mask, strict=True) if selected)


def write_split(folder: Path, name: str, rows: Iterator[Row], n_rows: int, encoder: Encoder, counts: Counts) -> Part:
    """Tokenizes rows batch by batch, writes them as the arrays of a split and prints what became of them.

    Raises:
        UserError: no row is left after the bad ones were dropped.
    """
    with store.Writer(folder, name) as writer, tqdm(total=n_rows, desc=name, unit=" rows", disable=None) as bar:
        for samples, found in _encoded(rows, encoder):
            writer.add(samples)
            counts.add(found)
            bar.update(found.read)
    part = Part(counts, writer.lengths, writer.n_targets)
    print(f"{name}: {summary(part)}")
    if not counts.kept:
        raise UserError(f"no row of {name} is left ({in_words(counts.dropped)}); nothing was written")
    return part


def _encoded(rows: Iterator[Row], encoder: Encoder) -> Iterator[tuple[list[Pair], Counts]]:
    """Yields the samples and counts of each batch of rows, in order.

    The tokenizer libraries use all cores within a batch; with two batches in flight, the Python part of one overlaps
    with that of the other.
    """

    def encode(batch: list[Row]) -> tuple[list[Pair], Counts]:
        counts = Counts()
        return encoder.encode(batch, counts), counts

    with ThreadPoolExecutor(max_workers=2) as threads:
        pending = deque()
        for batch in _batches(rows):
            pending.append(threads.submit(encode, batch))
            if len(pending) > 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yields the rows in order, in lists of at most BATCH rows and _BATCH_TEXT characters."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        n = sum(len(turn.text) + len(turn.context) for turn in row.turns)
        if len(batch) == BATCH or (batch and size + n > _BATCH_TEXT):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += n
    if batch:
        yield batch


def describe(
    train: Files,
    validation: Files | None,
    checkpoint_dir: Path,
    encoder: Encoder,
    parts: dict[str, Part],
    *,
    unused: Mapping[str, int],
) -> dict[str, Any]:
    """Returns the content of meta.json."""
    args = encoder.args
    meta: dict[str, Any] = {"source": ", ".join(map(str, train.paths))}
    if validation is not None:
        meta["validation_source"] = ", ".join(map(str, validation.paths))
    meta |= {
        "checkpoint_dir": str(checkpoint_dir),
        "tokenizer": encoder.tokenizer.fingerprint(),
        "prompt_style": encoder.style_name,
        WORDING: wording(encoder.style_name),
        "mask_inputs": args.mask_inputs,
        "last_turn_only": args.last_turn_only,
        "max_seq_length": encoder.limit,
        "truncation": args.truncation,
        "seed": args.seed,
        "end_ids": sorted(encoder.end_ids),
        "samples": {name: len(part.lengths) for name, part in parts.items()},
        "tokens": {name: int(part.lengths.sum()) for name, part in parts.items()},
        "targets": {name: part.n_targets for name, part in parts.items()},
        "longest": {name: int(part.lengths.max()) for name, part in parts.items()},
        "rows": {name: part.counts.record() for name, part in parts.items()},
        "unused_keys": dict(unused),
    }
    meta |= encoder.more_meta()
    if isinstance(encoder.style, ChatTemplate):
        meta["chat_template"] = encoder.style.text
    if (command := noted_command()) is not None:
        meta["command"] = command
    return meta


def tokenize(rows: Sequence[Row], tokenizer: Tokenizer, args: PrepareArgs, limit: int) -> tuple[list[Pair], Counts]:
    """Returns (ids, labels) of the rows that are kept, at most `limit` tokens each, and the counts of all rows.

    Raises:
        UserError: see `Encoder` and its `encode`.
    """
    counts = Counts()
    args = with_style(args, any(row.is_chat for row in rows), tokenizer.path.parent)
    return Encoder(tokenizer, args, limit).encode(rows, counts), counts
