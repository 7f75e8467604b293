"""Rows into tokens and labels, piece by piece, with an account of every row."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from lit_gpt.args import PrepareArgs
from lit_gpt.data.rows import Row
from lit_gpt.data.store import IGNORE
from lit_gpt.errors import UserError
from lit_gpt.prompts import Exchange, Turn, open_style
from lit_gpt.tokenizer import Tokenizer

Pair = tuple[list[int], list[int]]
"""Ids of a prompt, ids of its answer with the token that ends it."""
HEAD = re.compile(r"\s{0,16}\S{0,24}\s?")
"""Of an answer, as much as may melt with the end of its prompt: its first word, and the spaces around it."""
TAIL = 24
"""Characters of a prompt, likewise."""
MOST_SEAMS = 100_000
"""Ends of prompts with beginnings of answers that are remembered."""


@dataclass
class Counts:
    """What became of the rows of a split."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    apart: int = 0
    """Kept rows whose ids are not those of tokenizing their text as a whole: two texts melt where they meet."""
    last_only: int = 0
    """Kept rows of whose answers the last alone carries loss, since the chat template shows the others otherwise."""

    def add(self, other: "Counts") -> None:
        """Take in what became of other rows."""
        for name in ("read", "kept", "apart", "last_only"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped.update(other.dropped)
        self.cut.update(other.cut)

    def record(self) -> dict[str, Any]:
        """As meta.json has it."""
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "cut": dict(self.cut),
            "tokenized_apart": self.apart,
            "last_answer_only": self.last_only,
        }


class Encoder:
    """Makes samples of rows, in one prompt style, for one tokenizer.

    A sequence is built of pieces: prompt, answer, the token that ends it, and so on. So generation, which sees the
    prompt alone, meets the very ids of training, and masks need no search.

    Args:
        limit: most tokens of a sample.

    Raises:
        UserError: no such style.
    """

    def __init__(self, tokenizer: Tokenizer, args: PrepareArgs, limit: int) -> None:
        self.tokenizer, self.args, self.limit = tokenizer, args, limit
        self.style = open_style(args.prompt_style, tokenizer.path.parent, tokenizer)
        self.eos = tokenizer.id_to_token(tokenizer.eos_id)
        self.end_ids: set[int] = set()
        self.apart: dict[tuple[str, str], bool] = {}

    def encode(self, rows: Sequence[Row], counts: Counts) -> list[Pair]:
        """(ids, labels) of the rows that are kept, in their order; `counts` goes on.

        Raises:
            UserError: a sample is too long, with `--truncation error`; the chat template refuses a row.
        """
        counts.read += len(rows)
        usable = [
            (row, turns, e)
            for row in rows
            if (turns := used(row, counts)) and (e := self.exchanges(row, turns, counts))
        ]
        encoded = self.pairs([exchanges for *_, exchanges in usable])
        kept, uncut = [], []
        for (row, turns, exchanges), pairs in zip(usable, encoded, strict=True):
            fitting = self.fit(row, turns, pairs, counts)
            if fitting is not None:
                kept.append(self.labelled(fitting))
                uncut.append(exchanges)
                n_answers = sum(t.role == "assistant" for t in turns)
                counts.last_only += n_answers > len(exchanges) and not self.args.last_turn_only
        counts.kept += len(kept)
        counts.apart += self.count_apart(uncut)
        return kept

    def exchanges(self, row: Row, turns: tuple[Turn, ...], counts: Counts) -> list[Exchange] | None:
        """Prompts and answers of a row; None if the chat template refuses it and such rows are dropped."""
        try:
            return self.style.exchanges(turns)
        except UserError as e:
            if self.args.bad_rows == "error":
                raise UserError(f"{row.where}: {e}; --bad_rows drop leaves such rows out") from e
            counts.dropped["refused by the chat template"] += 1
            return None

    def pairs(self, rows: Sequence[Sequence[Exchange]]) -> list[list[Pair]]:
        """Ids of the exchanges of each row, tokenized all at once."""
        firsts = self.tokenizer.encode_batch([exchanges[0].prompt for exchanges in rows])
        later = [(before.end, e.prompt) for exchanges in rows for before, e in pairwise(exchanges)]
        prompts = iter(self.after_end(later))
        answers = iter(self.tokenizer.continue_batch([e.answer or "" for exchanges in rows for e in exchanges]))
        return [
            [
                (first if i == 0 else next(prompts), [*next(answers), self.end_id(e.end)])
                for i, e in enumerate(exchanges)
            ]
            for first, exchanges in zip(firsts, rows, strict=True)
        ]

    def after_end(self, prompts: Sequence[tuple[str | None, str]]) -> list[list[int]]:
        """Ids of (token that ends what is before, text) as the tokenizer has them after that token."""
        if self.eos is None:
            return self.tokenizer.continue_batch([text for _, text in prompts])
        found = self.tokenizer.encode_batch([(end or self.eos) + text for end, text in prompts], bos=False)
        return [ids[1:] for ids in found]

    def end_id(self, end: str | None) -> int:
        """Id of the token that ends an answer, which is remembered."""
        found = self.tokenizer.eos_id if end is None else self.tokenizer.token_to_id(end)
        self.end_ids.add(found)
        return found

    def fit(self, row: Row, turns: tuple[Turn, ...], pairs: list[Pair], counts: Counts) -> list[Pair] | None:
        """The pairs within the limit, cut as `--truncation` says; None if the row is dropped. Raises: UserError."""
        length = total(pairs)
        if length <= self.limit:
            return pairs
        if self.args.truncation == "error":
            raise UserError(
                f"{row.where or repr(row.instruction[:60])}: a sample of {length:,} tokens, more than {self.limit:,}; "
                "pass --truncation drop, cut_prompt or cut_end"
            )
        cut, what = None, ""
        if self.args.truncation == "cut_end":
            cut, what = cut_end(pairs, self.limit), "at the end"
        elif self.args.truncation == "cut_prompt":
            cut, what = self.cut_prompt(turns, pairs), "in the prompt"
        (counts.dropped if cut is None else counts.cut)[what if cut else f"longer than {self.limit} tokens"] += 1
        return cut

    def cut_prompt(self, turns: tuple[Turn, ...], pairs: list[Pair]) -> list[Pair] | None:
        """The row with the user's longest texts shortened from their ends until it fits; None if it never does.

        What the style puts around the texts, and all answers, stay whole.
        """
        while (excess := total(pairs) - self.limit) > 0:
            longest = max(
                ((i, name) for i, t in enumerate(turns) if t.role == "user" for name in ("text", "context")),
                key=lambda place: len(getattr(turns[place[0]], place[1])),
            )
            i, name = longest
            text = getattr(turns[i], name)
            if not text:
                return None
            n_tokens = len(self.tokenizer.encode(text, bos=False))
            n_characters = min(len(text) - 1, len(text) * max(0, n_tokens - excess) // max(1, n_tokens))
            changed = {"text": turns[i].text, "context": turns[i].context, name: text[:n_characters]}
            turns = (*turns[:i], Turn("user", **changed), *turns[i + 1 :])
            (pairs,) = self.pairs([self.style.exchanges(turns)])
        return pairs

    def labelled(self, pairs: Sequence[Pair]) -> Pair:
        """Ids and labels of one sample, end to end."""
        ids: list[int] = []
        labels: list[int] = []
        for i, (prompt, answer) in enumerate(pairs):
            taught = i == len(pairs) - 1 or not self.args.last_turn_only
            ids += [*prompt, *answer]
            labels += [IGNORE] * len(prompt) if self.args.mask_inputs else prompt
            labels += answer if taught else [IGNORE] * len(answer)
        return ids, labels

    def count_apart(self, rows: Sequence[Sequence[Exchange]]) -> int:
        """Rows in which the end of a prompt and the beginning of its answer melt when they are tokenized as one."""
        seams = [[(e.prompt[-TAIL:], HEAD.match(e.answer or "")[0]) for e in exchanges] for exchanges in rows]
        if len(self.apart) > MOST_SEAMS:
            self.apart = {}
        known = self.apart
        new = [seam for seam in dict.fromkeys(seam for row in seams for seam in row) if seam not in known]
        tails, heads = ([seam[side] for seam in new] for side in (0, 1))
        unique = list(dict.fromkeys(tails))
        ends = dict(zip(unique, self.tokenizer.encode_batch(unique, bos=False), strict=True))
        starts = self.tokenizer.continue_batch(heads)
        whole = self.tokenizer.encode_batch([tail + head for tail, head in new], bos=False)
        for seam, start, ids in zip(new, starts, whole, strict=True):
            known[seam] = ends[seam[0]] + start != ids
        return sum(any(known[seam] for seam in row) for row in seams)


def used(row: Row, counts: Counts) -> tuple[Turn, ...] | None:
    """The turns up to the last answer; None if there is none, or an empty one, which is counted as dropped."""
    turns = row.turns
    while turns and turns[-1].role != "assistant":
        turns = turns[:-1]
    if not turns:
        counts.dropped["no answer"] += 1
        return None
    if not all(t.text.strip() for t in turns if t.role == "assistant"):
        counts.dropped["empty response"] += 1
        return None
    if len(turns) < len(row.turns):
        counts.cut["after the last answer"] += 1
    return turns


def cut_end(pairs: Sequence[Pair], limit: int) -> list[Pair] | None:
    """The first `limit` tokens, of which the last is the one that ends an answer; None if no answer begins in them."""
    kept: list[Pair] = []
    for prompt, answer in pairs:
        room = limit - total(kept) - len(prompt)
        if room < 2:  # a token of the answer and its end
            break
        kept.append((prompt, answer if len(answer) <= room else [*answer[: room - 1], answer[-1]]))
    return kept or None


def total(pairs: Sequence[Pair]) -> int:
    """Tokens of all pieces."""
    return sum(len(prompt) + len(answer) for prompt, answer in pairs)
