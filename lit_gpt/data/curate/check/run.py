"""Runs the whole check: reads a prepared data set, prints the findings, fails if training on it would be useless."""

import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.args.curation import CheckArgs
from lit_gpt.data import store
from lit_gpt.data.arrays import let_go
from lit_gpt.data.compatibility import check_compatible, check_tokenizer
from lit_gpt.data.curate.check.finding import Finding, counted
from lit_gpt.data.curate.check.lengths import PICTURE, draw, histogram
from lit_gpt.data.curate.check.preferences import preference_findings
from lit_gpt.data.curate.check.samples import show, spread_by_length
from lit_gpt.data.curate.check.texts import check_language, check_texts
from lit_gpt.data.curate.check.tokens import check_tokens, chosen, per_sample
from lit_gpt.data.prepare.texts import Texts
from lit_gpt.errors import UserError
from lit_gpt.prompts import CHAT_TEMPLATE
from lit_gpt.tokenizer import Tokenizer

_MOST_TEXTS = 200_000
"""Most rows whose texts are compared; of more, this many are drawn at random."""
_AT_ONCE = 4096
"""Rows that are read before the memory of what was read is given back."""


def check(folder: Path, args: CheckArgs = CheckArgs(), checkpoint_dir: Path | None = None) -> list[Finding]:
    """Prints what a prepared data set holds, plots `lengths.png` in its folder, and returns the findings.

    Args:
        checkpoint_dir: checkpoint whose tokenizer decodes the data; None takes the one that meta.json names.

    Raises:
        UserError: the data is not prepared or damaged, or training on it would be useless: another tokenizer or chat
            template, most rows without targets, or end-of-sequence tokens that are not supervised.
    """
    train, val, meta = store.load(folder, judged=None)
    tokenizer = tokenizer_of(folder, meta, checkpoint_dir)
    check_compatible(meta, folder, tokenizer)
    splits = {"train": train, "val": val}
    print(f"{folder}: {' and '.join(f'{len(s):,} rows of {name}' for name, s in splits.items())}")
    _print_rows(meta)
    _print_lengths(folder, splits, meta, args.epochs)
    name_of, texts, n_train = _decoded(splits, tokenizer)
    end_ids = _end_ids_of(meta, tokenizer)
    if store.PREFERENCES in meta:
        findings = preference_findings(splits, folder, meta, tokenizer=tokenizer, end_ids=end_ids)
    else:
        findings = [f for name, s in splits.items() for f in check_tokens(name, s, tokenizer, end_ids)]
        findings += _empty(splits, tokenizer)
        findings += check_texts(name_of, texts, n_train, args.near_duplicate)
    if args.language is not None:
        findings.append(check_language(name_of, texts, args.language))
    _print_samples(train, tokenizer, args.n_samples)
    _print_findings(findings)
    if useless := [f.text for f in findings if f.level == "useless"]:
        raise UserError(f"{folder}: {useless[0]}")
    return findings


def tokenizer_of(folder: Path, meta: dict[str, Any], checkpoint_dir: Path | None) -> Tokenizer:
    """Loads the tokenizer that the data was prepared with; raises UserError if it is not there, or another one."""
    location = checkpoint_dir or Path(meta["checkpoint_dir"])
    if not location.is_dir():
        raise UserError(f"{folder} was prepared for {location}, which is not here; pass --checkpoint_dir")
    tokenizer = Tokenizer(location)
    check_tokenizer(meta, folder, tokenizer)
    return tokenizer


def _end_ids_of(meta: dict[str, Any], tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens that end an answer: the prompt style's, else the tokenizer's end-of-sequence token.

    None if a chat template marks what is supervised and marks no such token.
    """
    found = meta.get("end_ids", [])
    return found if found or CHAT_TEMPLATE in meta else [tokenizer.eos_id]


def _print_rows(meta: dict[str, Any]) -> None:
    """Prints what became of the rows of the source, if meta.json says so."""
    for split, rows in meta.get("rows", {}).items():
        if not rows or not {"read", "kept"} <= rows.keys():
            continue
        dropped, cut = ({reason: n for reason, n in (rows.get(k) or {}).items() if n} for k in ("dropped", "cut"))
        print(
            f"{split}: {rows['read']:,} rows read, {rows['kept']:,} kept, "
            f"{sum(dropped.values()):,} dropped{_in_brackets(dropped)}, {sum(cut.values()):,} cut{_in_brackets(cut)}"
        )


def _in_brackets(counts: dict[str, int]) -> str:
    """Returns the reasons with their numbers in brackets; empty if there are none."""
    return f" ({', '.join(f'{n:,} {reason}' for reason, n in counts.items())})" if counts else ""


def _print_lengths(folder: Path, splits: dict[str, store.Samples], meta: dict[str, Any], epochs: float) -> None:
    """Prints a histogram of the training set and how many tokens a run sees, and plots the lengths of both splits."""
    train = splits["train"]
    print("tokens of a sample of train:")
    print("\n".join(histogram(train.lengths)))
    picture = folder / PICTURE
    draw({name: s.lengths for name, s in splits.items()}, meta.get("max_seq_length"), picture)
    n_tokens, n_targets, limit = len(train.ids), train.n_targets, meta.get("max_seq_length")
    print(
        f"median {np.median(train.lengths):.0f}, mean {train.lengths.mean():.0f}, longest {train.lengths.max():,} of "
        f"{f'{limit:,}' if limit else '?'} possible; {picture} shows them"
    )
    print(
        f"{epochs:g} epoch{'s' * (epochs != 1)}: {round(epochs * n_tokens):,} tokens, of which "
        f"{round(epochs * n_targets):,} are targets ({n_targets / max(1, n_tokens):.0%})"
    )


def _decoded(splits: dict[str, store.Samples], tokenizer: Tokenizer) -> tuple[Callable[[int], str], Texts, int]:
    """Returns the name of each of the rows by its index, their texts, and how many of them are for training.

    Of very many rows, it is a random part of them.
    """
    n_train, n = len(splits["train"]), sum(map(len, splits.values()))
    drawn = np.arange(n)
    if n > _MOST_TEXTS:
        print(f"the texts of {_MOST_TEXTS:,} of {n:,} rows are compared, drawn at random")
        drawn = np.sort(np.random.default_rng(0).choice(n, _MOST_TEXTS, replace=False))

    def name_of(i: int) -> str:
        row = int(drawn[i])
        return f"sample {row} of train" if row < n_train else f"sample {row - n_train} of val"

    of_train = drawn < n_train
    rows = {"train": drawn[of_train], "val": drawn[~of_train] - n_train}
    texts = Texts(tokenizer.decode(ids.tolist()) for name in rows for _, ids, _ in _read(splits[name], rows[name]))
    return name_of, texts, int(of_train.sum())


def _read(samples: store.Samples, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields index, ids and labels of samples, and holds no others of those in files for long."""
    for n, i in enumerate(rows.tolist()):
        yield i, *samples[i]
        if n % _AT_ONCE == 0:
            let_go(samples.ids, samples.labels)
    let_go(samples.ids, samples.labels)


def _empty(splits: dict[str, store.Samples], tokenizer: Tokenizer) -> list[Finding]:
    """Counts rows whose targets hold no text but spaces and end-of-sequence tokens; only short ones are decoded."""
    found = []
    for name, samples in splits.items():
        few = chosen(samples, lambda part: per_sample(np.asarray(part.labels) != store.IGNORE, part) <= 8)
        answers = ((i, _targets_of(ids, labels)) for i, ids, labels in _read(samples, few))
        blank = [i for i, answer in answers if answer and not tokenizer.decode(answer).strip()]
        example = f"sample {blank[0]} of {name}" if blank else ""
        found.append(counted(name, len(blank), len(samples), what="have an empty answer", example=example))
    return found


def _targets_of(ids: np.ndarray, labels: np.ndarray) -> list[int]:
    """Returns the targets of a sample."""
    return ids[labels != store.IGNORE].tolist()


def _print_samples(train: store.Samples, tokenizer: Tokenizer, n: int) -> None:
    """Prints some samples with their targets marked."""
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if n:
        print("what the model sees (|) and learns to write (>):")
    for i in spread_by_length(train.lengths, n):
        print("\n".join(show("train", train, i, tokenizer=tokenizer, color=color)))


def _print_findings(findings: list[Finding]) -> None:
    """Prints warnings line by line, and all that is as it should be in one paragraph."""
    for finding in findings:
        if finding.level != "ok":
            print(finding)
    good = Finding("ok", "; ".join(f.text for f in findings if f.level == "ok"))
    print(textwrap.fill(str(good), 118, subsequent_indent=" " * 10))
