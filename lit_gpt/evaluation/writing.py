"""Texts that a model writes for the questions of tasks, many at once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.evaluation.drawing import Settings, cut
from lit_gpt.evaluation.rows import rows_that_fit
from lit_gpt.evaluation.scoring import RUN
from lit_gpt.generation.batching.runs import SharedRun
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.lockstep.batch import compiles, generate_batch
from lit_gpt.generation.request import Delta, Request
from lit_gpt.generation.sampling.sampler import Sampler
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer


class Writer:
    """Writes texts up to their first stop string or a token that ends them.

    Args:
        stop_ids: tokens that end every text.
        batch_size: most texts that are written at once; None takes what fits.
        autocast: context of every forward pass.
        run: a LoRA run that writes in place of `model`, which is its base.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        batch_size: int | None,
        autocast: Callable[[], AbstractContextManager[Any]],
        run: SharedRun | None = None,
    ) -> None:
        self.runs = {} if run is None else {RUN: run}
        self.model, self.tokenizer, self.stop_ids = model, tokenizer, stop_ids
        self.batch_size, self.autocast = batch_size, autocast

    def texts(self, questions: Mapping[int, list[int]], settings: Settings) -> Iterator[tuple[int, str]]:
        """Yields (number, text) as texts are finished, for questions with their token ids.

        Where steps are captured, on a GPU, texts are written in batches; elsewhere one begins as soon as another ends.
        """
        requests = {i: self._request(ids, settings) for i, ids in questions.items()}
        longest = max((len(r.ids) + r.max_new_tokens for r in requests.values()), default=1)
        batch_size = self.batch_size or rows_that_fit(self.model, 2 * longest, max(1, len(requests)))
        cut_short = any(r.max_new_tokens < settings.max_new_tokens for r in requests.values())
        with self.autocast():
            captured = not self.runs and not cut_short and compiles(self.model, settings.max_new_tokens, None)
        if not captured:
            yield from self._by_the_engine(requests, settings, batch_size)
            return
        by_length = sorted(requests, key=lambda i: len(questions[i]), reverse=True)
        for at in range(0, len(by_length), batch_size):
            batch = by_length[at : at + batch_size]
            yield from zip(batch, self._in_lockstep([requests[i] for i in batch], settings), strict=True)

    def _request(self, ids: list[int], settings: Settings) -> Request:
        """Returns what is asked of the model. Stop strings are not: `_Text` looks for them."""
        # a special token, such as <|im_end|>, is not part of decoded text: it stops by its id
        encoded = [self.tokenizer.encode(s, bos=False) for s in settings.until]
        special = {e[0] for e in encoded if len(e) == 1 and not self.tokenizer.decode(e)}
        return Request(
            ids,
            min(settings.max_new_tokens, self.model.config.block_size - len(ids)),
            settings.sampling,
            stop_ids=self.stop_ids | special,
            min_new_tokens=settings.min_new_tokens,
            run=RUN if self.runs else None,
        )

    def _by_the_engine(
        self, requests: Mapping[int, Request], settings: Settings, batch_size: int
    ) -> Iterator[tuple[int, str]]:
        lengths = sorted(len(r.ids) + r.max_new_tokens for r in requests.values())
        room = 2 * sum(lengths[-batch_size:])  # half of it for what questions begin with
        engine = Engine(
            self.model,
            self.tokenizer,
            runs=self.runs,
            max_rows=batch_size,
            max_tokens=room,
            autocast=self.autocast,
        )
        finished: list[tuple[int, str]] = []
        failed: list[str] = []
        for i, request in requests.items():
            text = _Text(self.tokenizer, settings)

            def deliver(delta: Delta, i: int = i, text: _Text = text) -> None:
                if delta.error:
                    failed.append(delta.error)  # raised here, it would end that request alone
                elif text.take(delta):
                    engine.cancel(text.ticket)
                if delta.finish is not None:
                    finished.append((i, text.text()))

            text.ticket = engine.submit(request, deliver)
        while engine.step() or finished:
            if failed:
                raise UserError(failed[0])
            yield from finished
            finished.clear()

    def _in_lockstep(self, requests: list[Request], settings: Settings) -> list[str]:
        """Returns the texts of a batch, in the model's captured steps."""
        texts = [_Text(self.tokenizer, settings) for _ in requests]
        done = [False] * len(requests)
        sampler = Sampler(self.model.config.padded_vocab_size, self.model.transformer.wte.weight.device)
        for row, request in enumerate(requests):
            sampler.add(row, request)
        columns = generate_batch(
            self.model,
            [r.ids for r in requests],
            settings.max_new_tokens,
            stop_ids=requests[0].stop_ids,
            pick=lambda logits: sampler.sample(logits.float(), range(len(requests))),
        )
        with self.autocast():
            for drawn in columns:
                for i, token in enumerate(drawn):
                    if not done[i] and token is not None:
                        texts[i].ids.append(token)
                    done[i] = done[i] or token is None or texts[i].has_stop()
                if all(done):
                    break
        return [text.text() for text in texts]


class _Text:
    """A text that grows.

    Stop strings are looked for in what the new tokens are by themselves: lm-eval's `hf` model does so, and the space
    that the first word of a text has after a question may be missing there.
    """

    ticket = -1

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        self.tokenizer, self.until = tokenizer, settings.until
        self.ids: list[int] = []

    def take(self, delta: Delta) -> bool:
        """Adds new tokens; returns whether the text has a stop string now, after which nothing is added."""
        ends = isinstance(delta.stop_reason, int)  # at a token, which is not part of the text
        for token in delta.tokens[: len(delta.tokens) - ends]:
            self.ids.append(token.id)
            if self.has_stop():
                return True
        return False

    def has_stop(self) -> bool:
        """Returns whether the text, whose last token is new, has a stop string.

        It decodes the last tokens first, and all of them only if the end has a stop string.
        """
        tail = 4 + max((len(s.encode()) for s in self.until), default=0)  # a token is at least a byte
        ends = (self.ids[-tail:], self.ids)
        return all(any(s in text for s in self.until) for text in map(self.tokenizer.decode, ends))

    def text(self) -> str:
        """Returns the text up to its first stop string."""
        return cut(self.tokenizer.decode(self.ids), self.until)
