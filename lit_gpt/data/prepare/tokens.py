"""Tokenizes rows into ids and labels, prompt by prompt and answer by answer, and counts what became of each row."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NoReturn

from lit_gpt.args import PrepareArgs
from lit_gpt.data.prepare.account import Counts
from lit_gpt.data.prepare.beginnings import Beginnings
from lit_gpt.data.prepare.pieces import Pair, Piece, labeled, n_supervised, total, truncate_end
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.seams import Seams
from lit_gpt.errors import UserError
from lit_gpt.foreign import LimitError
from lit_gpt.prompts import ChatTemplate, Exchange, Turn, calls_of, left_out, open_style, with_kwargs
from lit_gpt.prompts.chat_template import Conversation
from lit_gpt.tokenizer import Tokenizer

_BEYOND = "beyond the limits of time and memory"
_MOST_BEYOND = 10
"""Most rows that are dropped because they take the tokenizer or the chat template too much time or memory."""


class Encoder:
    """An encoder that makes samples of rows, in one prompt style, for one tokenizer.

    Prompts and answers are tokenized separately and then concatenated. So a prompt has the same ids at generation as
    in training, and the loss mask follows from positions, without a search in the tokens.

    Args:
        limit: most tokens of a sample.

    Raises:
        UserError: there is no such prompt style.
    """

    def __init__(self, tokenizer: Tokenizer, args: PrepareArgs, limit: int) -> None:
        self.tokenizer, self.args, self.limit = tokenizer, args, limit
        assert args.prompt_style is not None  # it was chosen before
        self.style_name = with_kwargs(args.prompt_style, args.template_kwargs)
        self.style = open_style(self.style_name, tokenizer.path.parent, tokenizer)
        self.eos = tokenizer.id_to_token(tokenizer.eos_id)
        self.beginnings = Beginnings(tokenizer, limit)
        self.end_ids: set[int] = set()
        self._n_beyond = 0
        self.seams = Seams(tokenizer)

    def encode(self, rows: Sequence[Row], counts: Counts) -> list[Pair]:
        """Returns (ids, labels) of the rows that are kept, in order, and adds to `counts` what became of all.

        Raises:
            UserError: a sample is too long, with `--truncation error`; or the chat template refuses a row, or a row
                takes the tokenizer or the template too much time or memory.
        """
        found = Counts()
        try:
            kept = self._encode(rows, found)
        except LimitError as e:
            if len(rows) > 1:  # one by one, to know which it is
                return [pair for row in rows for pair in self.encode([row], counts)]
            kept, found = [], Counts(read=1)
            self._drop(rows[0], e, found)
        counts.add(found)
        return kept

    def _encode(self, rows: Sequence[Row], counts: Counts) -> list[Pair]:
        """Returns (ids, labels) of the rows that are kept, in order, and adds to `counts` what became of all."""
        counts.read += len(rows)
        usable = [(row, turns) for row in rows if (turns := _used(row, counts))]
        rendered = zip(usable, self._render([(turns, row.tools) for row, turns in usable]), strict=True)
        asked = [
            (row, turns, exchanges)
            for (row, turns), found in rendered
            if (exchanges := self._supervised(row, found, counts))
        ]
        within = [
            fitted
            for row, turns, exchanges in asked
            if (fitted := self._fitted(row, turns, exchanges=exchanges, counts=counts))
        ]
        encoded = self.pieces([short for *_, short in within])
        kept, uncut = [], []
        for (row, turns, exchanges, _), pieces in zip(within, encoded, strict=True):
            within_limit = self._truncated(row, turns, pieces, counts)
            if within_limit is not None:
                kept.append(labeled(within_limit, self.args.mask_inputs, self.args.last_turn_only))
                uncut.append(exchanges)
                self._count_answers(row, turns, exchanges, counts)
                counts.taught += n_supervised(within_limit, self.args.last_turn_only)
        counts.kept += len(kept)
        counts.tokenized_apart += self.seams.n_apart(uncut)
        return kept

    def more_meta(self) -> dict[str, str]:
        """Returns what meta.json says of the samples besides what is in every one."""
        return {}

    def exchanges(self, row: Row, turns: tuple[Turn, ...], counts: Counts) -> list[Exchange] | None:
        """Returns the prompts and answers of a row; None if it is dropped, which is counted.

        A row is dropped if nothing in it is supervised, or if the prompt style refuses it, with `--bad_rows drop`.

        Raises:
            UserError: the style refuses it, with `--bad_rows error`.
        """
        (found,) = self._render([(turns, row.tools)])
        return self._supervised(row, found, counts)

    def _render(self, conversations: Sequence[Conversation]) -> Iterator[list[Exchange] | UserError]:
        """Yields the exchanges of each conversation in the style, or the error by which the style refuses it."""
        if isinstance(self.style, ChatTemplate):
            yield from self.style.exchanges_of(conversations)
            return
        for turns, tools in conversations:
            try:
                yield self.style.exchanges(turns, tools)
            except UserError as e:
                yield e

    def _supervised(self, row: Row, found: list[Exchange] | UserError, counts: Counts) -> list[Exchange] | None:
        """Returns the exchanges up to the last supervised one; None if the row is dropped, as `exchanges` says."""
        if isinstance(found, UserError):
            self._drop(row, found, counts)
            return None
        while found and not (found[-1].taught and found[-1].answer is not None):
            found.pop()
        if not found:
            counts.dropped["no answer that is taught"] += 1
        return found or None

    def _drop(self, row: Row, e: UserError, counts: Counts) -> None:
        """Counts a row as dropped for an error.

        Raises:
            UserError: with `--bad_rows error`; or too many rows have taken the whole time that a row may take.
        """
        self._n_beyond += isinstance(e, LimitError)
        if self.args.bad_rows == "error" or self._n_beyond > _MOST_BEYOND:
            way = "" if self.args.bad_rows == "drop" else "; --bad_rows drop leaves such rows out"
            raise UserError(f"{row.where}: {e}{way}") from e
        counts.dropped[_BEYOND if isinstance(e, LimitError) else "refused by the chat template"] += 1

    def _fitted(
        self, row: Row, turns: tuple[Turn, ...], exchanges: list[Exchange], counts: Counts
    ) -> tuple[Row, tuple[Turn, ...], list[Exchange], list[Exchange]] | None:
        """Returns a row with its turns and exchanges, and of these what is tokenized; None if it is dropped.

        Only the beginning of a text is tokenized that is far longer than a sample may be.

        Raises:
            UserError: the row is too long, with `--truncation error`.
        """
        beginning = self.beginnings.of(exchanges)
        if beginning is None:
            return row, turns, exchanges, exchanges
        if self.args.truncation == "error":
            self._refuse(row, f"more than {self.limit:,} tokens")
        if self.args.truncation != "cut_prompt":
            return row, turns, exchanges, beginning
        if self.beginnings.of([Exchange("", e.answer) for e in exchanges]) is not None:
            counts.dropped[self._too_long] += 1  # the answers alone are
            return None
        turns = tuple(
            replace(t, text=self.beginnings.of_text(t.text), context=self.beginnings.of_text(t.context))
            if t.role == "user"
            else t
            for t in turns
        )
        shorter = self.exchanges(row, turns, counts)
        return (row, turns, shorter, shorter) if shorter else None

    def _count_answers(self, row: Row, turns: Sequence[Turn], exchanges: Sequence[Exchange], counts: Counts) -> None:
        """Counts the answers of a row that can be supervised, and the texts that the chat template does not render."""
        wanted = sum(t.taught for t in turns if t.role == "assistant")
        shown = sum(e.taught and not e.continues for e in exchanges)
        last_only = self.args.last_turn_only
        counts.answers += min(wanted, 1) if last_only else wanted
        counts.last_only += shown < wanted and not last_only
        if isinstance(self.style, ChatTemplate):
            counts.left_out.update(left_out(turns, row.tools, exchanges))

    def pieces(self, rows: Sequence[Sequence[Exchange]]) -> list[list[Piece]]:
        """Returns prompts and answers of each row as ids, all tokenized in one batch."""
        firsts = self.tokenizer.encode_batch([exchanges[0].prompt for exchanges in rows])
        prompts = iter(self._later_prompts([pair for exchanges in rows for pair in pairwise(exchanges)]))
        answers = iter(self.tokenizer.continue_batch([e.answer or "" for exchanges in rows for e in exchanges]))
        return [
            [
                Piece(
                    first if i == 0 else next(prompts),
                    [*next(answers), *([self._end_id(e)] if e.ended else [])],
                    e.ended,
                    taught=e.taught,
                    continues=e.continues,
                )
                for i, e in enumerate(exchanges)
            ]
            for first, exchanges in zip(firsts, rows, strict=True)
        ]

    def _later_prompts(self, pairs: Sequence[tuple[Exchange, Exchange]]) -> list[list[int]]:
        """Returns the prompt ids of each pair's second exchange, as they come after the token that ends the first."""
        found = self.tokenizer.continue_batch([e.prompt for _, e in pairs])
        ended = [i for i, (before, _) in enumerate(pairs) if before.ended and (before.end or self.eos)]
        whole = [(pairs[i][0].end or self.eos or "") + pairs[i][1].prompt for i in ended]
        for i, ids in zip(ended, self.tokenizer.encode_batch(whole, bos=False), strict=True):
            found[i] = ids[1:]
        return found

    def _end_id(self, exchange: Exchange) -> int:
        """Returns the id of the token that ends an answer, and adds it to `end_ids` if it is supervised."""
        found = self.tokenizer.eos_id if exchange.end is None else self.tokenizer.token_to_id(exchange.end)
        if exchange.taught:
            self.end_ids.add(found)
        return found

    def _truncated(self, row: Row, turns: tuple[Turn, ...], pieces: list[Piece], counts: Counts) -> list[Piece] | None:
        """Returns the pieces, truncated to the limit as `--truncation` says; None if the row is dropped.

        Raises:
            UserError: the row is too long, with `--truncation error`.
        """
        length = total(pieces)
        if length <= self.limit:
            return pieces
        if self.args.truncation == "error":
            self._refuse(row, f"{length:,} tokens, more than {self.limit:,}")
        if self.args.truncation == "cut_prompt":
            return self._truncate_prompt(row, turns, pieces, counts)
        cut = truncate_end(pieces, self.limit) if self.args.truncation == "cut_end" else None
        if cut is None:
            counts.dropped[self._too_long] += 1
        else:
            counts.cut["at the end"] += 1
        return cut

    def _refuse(self, row: Row, length: str) -> NoReturn:
        """Raises UserError for a row that is too long."""
        where = row.where or repr(row.instruction[:60])
        raise UserError(f"{where}: a sample of {length}; pass --truncation drop, cut_prompt or cut_end")

    @property
    def _too_long(self) -> str:
        """Reason, in the counts, for dropping a row that is too long."""
        return f"longer than {self.limit} tokens"

    def _truncate_prompt(
        self, row: Row, turns: tuple[Turn, ...], pieces: list[Piece], counts: Counts
    ) -> list[Piece] | None:
        """Returns the row's pieces after the user's longest texts were truncated until it is within the limit.

        None if it never is, or if the style refuses the shorter row; either is counted. What the style puts around
        the texts, and all answers, stay whole.

        Raises:
            UserError: see `exchanges`.
        """
        while (excess := total(pieces) - self.limit) > 0:
            shorter = self._shortened(turns, excess)
            if shorter == turns:
                counts.dropped[self._too_long] += 1
                return None
            turns = shorter
            exchanges = self.exchanges(row, turns, counts)
            if exchanges is None:
                return None
            (pieces,) = self.pieces([exchanges])
        counts.cut["in the prompt"] += 1
        return pieces

    def _shortened(self, turns: tuple[Turn, ...], excess: int) -> tuple[Turn, ...]:
        """Returns the turns with the user's longest texts truncated, one after the other, by at least half the excess.

        Not by all of it: how many tokens a text takes within the whole sample shows only when that is tokenized again.
        """
        texts = [
            (len(getattr(t, n)), i, n) for i, t in enumerate(turns) if t.role == "user" for n in ("text", "context")
        ]
        found, left = list(turns), excess
        for length, i, name in sorted(texts, key=lambda text: -text[0]):
            if not length or 2 * left < excess:
                break
            text = getattr(found[i], name)
            n_tokens = len(self.tokenizer.encode(text, bos=False))
            n_characters = min(length - 1, length * max(0, n_tokens - left) // max(1, n_tokens))
            found[i] = replace(found[i], **{name: text[:n_characters]})
            left -= min(n_tokens, left)
        return tuple(found)


def _used(row: Row, counts: Counts) -> tuple[Turn, ...] | None:
    """Returns the turns up to the last supervised answer; None if there is none, or an empty one, which is counted.

    An answer that calls tools is not empty.
    """
    turns = row.turns
    while turns and not (turns[-1].role == "assistant" and turns[-1].taught):
        turns = turns[:-1]
    answers = [t for t in row.turns if t.role == "assistant"]
    if not turns:
        counts.dropped["no answer that is taught" if answers else "no answer"] += 1
        return None
    if not all(t.text.strip() or calls_of(t) for t in answers if t.taught):
        counts.dropped["empty response"] += 1
        return None
    if len(turns) < len(row.turns):
        only_after = all(t.role != "assistant" for t in row.turns[len(turns) :])
        counts.cut["after the last answer" if only_after else "after the last answer that is taught"] += 1
    return turns
