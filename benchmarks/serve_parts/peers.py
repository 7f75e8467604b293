"""transformers behind our HTTP server: the same endpoints and the same tokenizer, another engine.

A process of its own (`python peers.py KIND FOLDER DTYPE`), which prints the server's line with its address. KIND is
`single`, which answers one request after the other by `model.generate`, or `continuous`, which hands each to
transformers' continuous batching as it comes.
"""

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(1, str(Path(__file__).parent.parent.parent))
from lit_gpt.args import ServeArgs
from lit_gpt.generation.answers import Stats
from lit_gpt.generation.request import Delta, Request, Scored
from lit_gpt.serve.load import Loaded
from lit_gpt.serve.models import Registry, Served
from lit_gpt.serve.run import Server, listen
from lit_gpt.tokenizer import Tokenizer

_Deliver = Callable[[Delta], None]
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_BLOCKS = 96
"""Blocks of 256 positions in transformers' cache, enough for all chats; unasked it takes most of a machine's memory."""


class _Peer:
    """What the server wants of an engine: requests come in on any thread, and `step` answers them on one."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.work = threading.Event()
        self.inbox: deque[tuple[int, Request, _Deliver]] = deque()
        self.n = self.n_done = 0
        self._entry = threading.Lock()

    def submit(self, request: Request, deliver: _Deliver) -> int:
        with self._entry:
            self.n += 1
            self.inbox.append((self.n, request, deliver))
        self.work.set()
        return self.n

    def cancel(self, ticket: int) -> None:
        """Does nothing: no request of the benchmark is given up."""

    cancel_all = close = lambda self: None

    def has_work(self) -> bool:
        return self.n_done < self.n

    def stats(self) -> Stats:
        return Stats(running=0, waiting=self.n - self.n_done, tokens_kept=0, tokens_free=0, tokens_reused=0,
                     tokens_read=0, tokens_generated=0, steps=self.n_done)  # fmt: skip

    def answer(self, request: Request, deliver: _Deliver, tokens: Sequence[Scored]) -> None:
        """Delivers a whole text."""
        ends = bool(tokens) and tokens[-1].id in request.stop_ids
        text = self.tokenizer.decode([t.id for t in tokens[: len(tokens) - ends]])
        self.n_done += 1
        reason = tokens[-1].id if ends else None
        deliver(Delta(text, tuple(tokens), finish="stop" if ends else "length", stop_reason=reason))


class _Single(_Peer):
    """One request after the other, each by `generate`."""

    def step(self) -> bool:
        self.work.clear()
        if not self.inbox:
            return False
        _, request, deliver = self.inbox.popleft()
        ids = torch.tensor([list(request.ids)], device=_DEVICE)
        found = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_new_tokens, do_sample=False,
            eos_token_id=sorted(request.stop_ids) or None, pad_token_id=0, return_dict_in_generate=True,
            output_logits=request.logprobs is not None,
        )  # fmt: skip
        new = found.sequences[0, ids.size(1) :].tolist()
        if request.logprobs is None:
            self.answer(request, deliver, [Scored(i) for i in new])
            return True
        tokens = []
        for i, logits in zip(new, found.logits, strict=True):
            scores = logits[0].float().log_softmax(-1)
            values, best = scores.topk(max(1, request.logprobs))
            top = tuple(zip(best.tolist(), values.tolist(), strict=True))[: request.logprobs]
            tokens.append(Scored(i, float(scores[i]), float(scores[i]) >= float(values[0]), top))
        self.answer(request, deliver, tokens)
        return True


class _Continuous(_Peer):
    """All requests together, by transformers' continuous batching."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        from transformers.generation import ContinuousBatchingConfig

        super().__init__(model, tokenizer)
        config = ContinuousBatchingConfig(num_blocks=_BLOCKS)
        self.manager = model.init_continuous_batching(continuous_batching_config=config)
        self.manager.start()
        self.asked: dict[str, tuple[Request, _Deliver]] = {}

    def step(self) -> bool:
        self.work.clear()
        while self.inbox:
            _, request, deliver = self.inbox.popleft()
            name = self.manager.add_request(
                list(request.ids), max_new_tokens=request.max_new_tokens, eos_token_id=sorted(request.stop_ids) or -1
            )
            self.asked[name] = request, deliver
        if not self.asked:
            return False
        done = self.manager.get_result(timeout=0.02)
        if done is not None and done.is_finished():
            assert done.error is None, done.error
            self.answer(*self.asked.pop(done.request_id), tokens=[Scored(i) for i in done.generated_tokens])
        return True

    def close(self) -> None:
        self.manager.stop(block=True, timeout=5)


KINDS = {"single": _Single, "continuous": _Continuous}


def main() -> None:
    kind, folder, dtype = sys.argv[1], Path(sys.argv[2]), getattr(torch, sys.argv[3])
    from transformers import AutoModelForCausalLM

    from lit_gpt.prompts import CHAT_TEMPLATE, open_style

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.eval().to(_DEVICE)
    model.generation_config.do_sample = False
    tokenizer = Tokenizer(folder)
    engine: Any = KINDS[kind](model, tokenizer)
    engine.submit(Request([1, 2, 3], 2, logprobs=None), lambda delta: None)  # warm, as ours is
    while engine.step():
        pass
    style = open_style(CHAT_TEMPLATE, folder, tokenizer)
    served = Served("transformers", folder, None, style, style_name=CHAT_TEMPLATE)
    loaded = Loaded(engine, tokenizer, Registry([served]), model.config.max_position_embeddings)
    args = ServeArgs(port=0)
    listening = listen(args)
    try:
        asyncio.run(Server(lambda: loaded, args, None, listening).main())
    finally:
        engine.close()


if __name__ == "__main__":
    main()
