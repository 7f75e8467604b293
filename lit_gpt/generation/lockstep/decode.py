"""The steps of decoding, one token for every row, on tensors that never move.

On a GPU a step can be captured as a CUDA graph, which removes the cost of launching its kernels: there are hundreds,
and each runs for a few microseconds, less than Python needs to launch it.

Letters: B rows, T tokens of a call, V padded vocabulary.
"""

import warnings
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from lit_gpt.generation.lockstep.cache import CacheSlice, StaticCache, room
from lit_gpt.generation.lockstep.steps import compiled, with_kernels
from lit_gpt.layers.compiled import compiling
from lit_gpt.model import GPT
from lit_gpt.resources import never_waiting


class Decoder:
    """Reads prompts, then takes one token per row and returns the logits of the next one.

    Args:
        model: a model in eval mode; its weights must not move while the decoder lives.
        batch_size: number of rows.
        length: largest number of positions in a row, prompt included.
        way: how to run the model. `plain`: as it is; `kernels`: with our Triton kernels, on a GPU; anything else is a
            backend of `torch.compile`.
        capture: whether to capture steps as CUDA graphs: one graph for each number of positions that steps read, or a
            single one with our kernels.
    """

    def __init__(self, model: GPT, batch_size: int, length: int, way: str = "plain", capture: bool = False) -> None:
        self.model, self.length, self.way, self.capture = model, length, way, capture
        ways = {"plain": lambda: model, "kernels": lambda: with_kernels(model, batch_size)}
        self.step_model = ways.get(way, lambda: compiled(model, way))()
        device = model.transformer.wte.weight.device
        with torch.inference_mode(False):  # compiled and captured code refuses inference tensors
            self.cache = StaticCache(model, batch_size, length)
            self.token, self.position = (torch.zeros(batch_size, dtype=torch.long, device=device) for _ in range(2))
        self.longest = 0
        self.slices: dict[int, CacheSlice] = {}
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.pool = torch.cuda.graph_pool_handle() if capture else None

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Returns the logits of the first new token of each row, (B, V); rows are padded on the right."""
        lengths = [len(p) for p in prompts]
        self.longest = max(lengths)
        device = self.token.device
        ids = torch.tensor([[*p, *[0] * (self.longest - len(p))] for p in prompts], device=device)  # (B, T)
        self.position.copy_(torch.tensor(lengths))
        hidden = self.model.hidden(ids, torch.arange(self.longest, device=device), self.cache.first(self.longest))
        return self.model.logits(hidden[self.cache.rows, self.position - 1])

    def step(self, token: Tensor) -> Tensor:
        """Appends a token to each row, (B,); returns logits of the next ones, (B, V), valid until the next step.

        On a GPU it returns before they are computed. Rows may continue past the end of the context; what is drawn
        there is discarded.
        """
        self.token.copy_(token)
        self.longest = min(self.longest + 1, self.length)
        n = room(self.length if self.way == "kernels" else self.longest)
        if self.capture and n not in self.graphs:
            self.record(n)
        if self.capture:
            graph, logits = self.graphs[n]
            graph.replay()
        else:
            logits = self.run(n)
        self.position.add_(1).clamp_(max=self.length - 1)
        return logits

    def run(self, n: int) -> Tensor:
        """Returns the logits after `self.token` at `self.position`, reading `n` positions; it can be repeated."""
        # with our kernels, norms are compiled: uncompiled, they take six launches each and took a tenth of a step
        with torch.inference_mode(False), torch.no_grad(), compiling(self.way == "kernels"):
            if n not in self.slices:
                fixed = self.way in ("plain", "kernels")
                self.slices[n] = self.cache.first(n) if fixed else self.cache.first(n).any_size()
            hidden = self.step_model.hidden(self.token[:, None], self.position[:, None], self.slices[n])
            return self.step_model.logits(hidden[:, 0])

    def record(self, n: int) -> None:
        """Captures `run(n)`; if the model makes the host wait for the GPU, captures nothing from now on."""
        stream = _side_stream(self.token.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.run(n)  # warm-up: compiles and tunes
            try:
                with never_waiting():  # checked before, since a capture that fails leaves the device in a bad state
                    self.run(n)
            except RuntimeError as e:
                self.capture = False
                warnings.warn(f"decoding goes on without CUDA graphs: {str(e).splitlines()[0]}", stacklevel=2)
            else:
                graph = torch.cuda.CUDAGraph()
                stream.synchronize()
                graph.capture_begin(pool=self.pool, capture_error_mode="relaxed")
                try:
                    logits = self.run(n)
                finally:
                    graph.capture_end()
                self.graphs[n] = graph, logits
        torch.cuda.current_stream().wait_stream(stream)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the one stream on which steps are captured: cuBLAS keeps a workspace for each stream that it uses."""
    return torch.cuda.Stream(device)
