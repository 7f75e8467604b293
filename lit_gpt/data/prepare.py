"""Rows into a prepared data set: check, split, tokenize, store, and say what happened to every row."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lit_gpt.args import PrepareArgs, SourceArgs
from lit_gpt.convert.lit import read_config, require_checkpoint
from lit_gpt.data import store
from lit_gpt.data.download import locate
from lit_gpt.data.rows import Row
from lit_gpt.errors import UserError
from lit_gpt.prompts import make_prompt
from lit_gpt.tokenizer import Tokenizer


def prepare_source(
    read: Callable[[Path], list[Row]], source: SourceArgs, folder: Path, checkpoint_dir: Path, args: PrepareArgs
) -> None:
    """`prepare` what `read` finds in the file of `source`, downloaded if need be. What every prepare script does.

    Raises:
        UserError: as `locate`, `read` and `prepare`.
    """
    require_checkpoint(checkpoint_dir)  # before a download
    path = locate(source.data_file, source.data_file_url, source.data_file_name, folder)
    validation_rows = read(source.validation_file) if source.validation_file else None
    prepare(read(path), validation_rows, folder, checkpoint_dir, path, args)


def prepare(
    rows: list[Row],
    validation_rows: list[Row] | None,
    folder: Path,
    checkpoint_dir: Path,
    source: Path,
    args: PrepareArgs,
) -> None:
    """Tokenize `rows` for the model of `checkpoint_dir` and store them in `folder`; prints what it did.

    Args:
        validation_rows: the held-out rows; None holds a part of `rows` out.
        source: where the rows came from, for meta.json.

    Raises:
        UserError: rows that leave nothing to train or to validate on, an unknown prompt style, no checkpoint.
    """
    require_checkpoint(checkpoint_dir)
    tokenizer = Tokenizer(checkpoint_dir)
    block_size = read_config(checkpoint_dir).block_size
    limit = min(args.max_seq_length or block_size, block_size)
    if validation_rows is None:
        rows, validation_rows = split(rows, args.test_split_fraction, args.seed)
    print(f"train has {len(rows):,} rows, val has {len(validation_rows):,}")
    splits = {}
    for name, part in (("train", rows), ("val", validation_rows)):
        samples, counts = tokenize(part, tokenizer, args, limit)
        splits[name] = store.stack(samples)
        print(f"{name}: {describe(splits[name], counts)}")
        if not samples:
            raise UserError(f"{source}: no row of {name} is left ({', '.join(counts)}); nothing was written")
    meta = {
        "source": str(source),
        "checkpoint_dir": str(checkpoint_dir),
        "tokenizer": tokenizer.fingerprint(),
        "prompt_style": args.prompt_style,
        "mask_inputs": args.mask_inputs,
        "max_seq_length": limit,
        "truncation": args.truncation,
        "seed": args.seed,
        "samples": {name: len(samples) for name, samples in splits.items()},
        "tokens": {name: len(samples.ids) for name, samples in splits.items()},
        "longest": {name: int(samples.lengths.max()) for name, samples in splits.items()},
    }
    store.save(folder, splits, meta)
    print(f"Saved to {folder}")


def split(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, val): `fraction` of the rows, at least one, drawn by `seed` are held out. Order is kept.

    Raises:
        UserError: fewer than two rows.
    """
    if len(rows) < 2:
        raise UserError("one row cannot be split; pass --validation_file")
    n_held_out = min(len(rows) - 1, max(1, round(len(rows) * fraction)))
    held_out = set(random.Random(seed).sample(range(len(rows)), n_held_out))
    return [r for i, r in enumerate(rows) if i not in held_out], [r for i, r in enumerate(rows) if i in held_out]


def tokenize(
    rows: Sequence[Row], tokenizer: Tokenizer, args: PrepareArgs, limit: int
) -> tuple[list[tuple[list[int], list[int]]], Counter[str]]:
    """(ids, labels) of the rows that are kept, and how many were dropped or cut, by reason.

    A sequence is built piece by piece, prompt ids + response ids + end of sequence, so that generation, which sees the
    prompt alone, meets the very ids of training, and the mask needs no search.

    Args:
        limit: most tokens of a sample.

    Raises:
        UserError: a longer sample, with `--truncation error`.
    """
    prompts = tokenizer.encode_batch([make_prompt(args.prompt_style, r.instruction, r.context) for r in rows])
    responses = tokenizer.encode_batch([r.response for r in rows], bos=False, eos=True)
    kept: list[tuple[list[int], list[int]]] = []
    counts: Counter[str] = Counter()
    for row, prompt, response in zip(rows, prompts, responses, strict=True):
        excess = len(prompt) + len(response) - limit
        if not row.response.strip():
            counts["dropped for an empty response"] += 1
            continue
        if excess > 0 and args.truncation == "error":
            raise UserError(f"a sample has {limit + excess} tokens, more than {limit}: {row.instruction[:60]!r}")
        if excess > 0 and (args.truncation == "drop" or len(prompt) > limit - 2):
            counts[f"dropped for more than {limit} tokens"] += 1
            continue
        if excess > 0:
            response = [*response[: -1 - excess], response[-1]]  # the end of sequence stays
            counts[f"cut to {limit} tokens"] += 1
        masked = [store.IGNORE] * len(prompt) if args.mask_inputs else prompt
        kept.append(([*prompt, *response], [*masked, *response]))
    return kept, counts


def describe(samples: store.Samples, counts: Counter[str]) -> str:
    """One line: how many samples and tokens, how long, and what was left out."""
    left_out = "; ".join(f"{n:,} {what}" for what, n in counts.items()) or "none dropped or cut"
    if not len(samples):
        return f"no samples; {left_out}"
    lengths, n_tokens = samples.lengths, len(samples.ids)
    return (
        f"{len(samples):,} samples, {n_tokens:,} tokens of which {samples.n_targets:,} are targets, "
        f"length {np.median(lengths):.0f} in the median and {lengths.max()} at most; {left_out}"
    )
