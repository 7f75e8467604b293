"""One forward pass for rows of different lengths: linear layers see all their tokens, attention each row's extent.

Letters: N tokens of all rows, n some of them, C n_embd, V padded vocabulary.
"""

import copy
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.generation.batching.attention import ExtentAttention
from lit_gpt.generation.batching.batch import Batch, Piece
from lit_gpt.generation.batching.mixing import ExtentMixing
from lit_gpt.generation.batching.pool import Pool
from lit_gpt.generation.cpu.products import packed
from lit_gpt.generation.cpu.scripted import scriptable, scripted_block
from lit_gpt.layer_heads import kv_source
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.past import Mixing
from lit_gpt.layers.per_layer import Carried
from lit_gpt.methods.lora.shared import RunSpan, SharedLinear, Updates
from lit_gpt.model import GPT, Block, finished_logits

_Layer = Callable[[Tensor, Tensor, Tensor, Batch, Carried | None], Tensor]
"""Function of x (N, C), cos and sin (N, rope_n_elem), the batch, and what the pass takes along, that computes a layer,
(N, C)."""


class ExtentModel:
    """A model that reads tokens of many rows at once, whose keys and values lie in extents of a pool.

    It shares all weights with `model` and does not change it.

    Args:
        runs: name -> a LoRA run's updates by the path of their layer.
        fast: compile the blocks and pack the weights, see `lit_gpt.generation.cpu.products`, in threads of their own
            until a pass needs them; for a pool in fp32 and a model that `speeds_up` holds for.
    """

    def __init__(self, model: GPT, pool: Pool, runs: Mapping[str, Mapping[str, Updates]], fast: bool = False) -> None:
        self.pool, config = pool, model.config
        self._spans: list[RunSpan] = []  # of the pass that runs; every `SharedLinear` reads it
        paths = {path for updates in runs.values() for path in updates}
        shared = {
            path: SharedLinear(layer, {name: u[path] for name, u in runs.items() if path in u}, self._spans)
            for path, layer in model.named_modules(remove_duplicate=False)
            if path in paths and isinstance(layer, LinearLayer)
        }
        self.by_run = any(".experts." in path for path in paths)
        """Whether a pass is for one run only: experts see tokens in another order."""
        self.model = _with(model, shared)
        has_triton = importlib.util.find_spec("triton") is not None
        self.in_kernels = pool.k[0].is_cuda and has_triton and config.is_plain
        """Whether rows that feed one token each are attended to by our Triton kernels."""
        self.reads_once = pool.k[0].device.type == "cpu"
        """Whether what rows share is read once for all of them."""
        self.is_fast = fast
        self._windows = [config.sliding_window if config.is_sliding(i) else 0 for i in range(config.n_layer)]
        self._head, self._blocks = self.model.lm_head, iter(self.model.transformer.h)
        self._may_not_wait = fast and all(p.dtype == torch.float32 for p in model.parameters())
        """Whether the next pass does without packed weights, as the first one does where weights as they are compute
        the same but for the order of sums: packing takes longer than that pass."""
        self._is_packed = True
        """Whether the last pass was one with packed weights, if there are any."""
        if fast:  # nobody waits for it before the first pass; torch packs a weight by a single thread
            threads = ThreadPoolExecutor(torch.get_num_threads())
            self._head = threads.submit(packed, self._head)
            self._blocks = threads.map(_fast_block, self._blocks, self._windows)
            threads.shutdown(wait=False)

    @cached_property
    def lm_head(self) -> nn.Module:
        """The output projection, once its weight is packed."""
        return self._head.result() if isinstance(self._head, Future) else self._head

    @cached_property
    def layers(self) -> list["_Layer"]:
        """The functions of all layers, once their weights are packed."""
        return self._all_made(self._blocks)

    def _all_made(self, blocks: Iterable[Any]) -> list["_Layer"]:
        """Returns the functions that compute the layers with these blocks."""
        return [self._made(i, *of) for i, of in enumerate(zip(blocks, self._windows, strict=True))]

    def _made(self, i: int, block: Any, window: int) -> "_Layer":
        """Returns the function that computes layer i with a block, which may be compiled."""
        source = kv_source(self.model.config, i)
        keys, values = self.pool.k[source], self.pool.v[source]
        if not isinstance(block, Block):
            run, always = block.forward, bool(self.model.config.attn_logit_softcapping)
            is_last = i == self.model.config.n_layer - 1
            return lambda x, cos, sin, batch, carried: run(
                x,
                *batch.turns(cos, sin),
                keys,
                values,
                batch.places,
                batch.rows,
                batch.parts,
                batch.masks(window, always),
                batch.wanted if is_last else None,
            )
        if isinstance(block.attn, Mixing):
            twin = _with(block, {"attn": ExtentMixing(block.attn, keys)})
            return lambda x, cos, sin, batch, carried: twin(x.unsqueeze(0), cos, sin, None, batch, carried=carried)[0]
        if block.attn is None:
            return lambda x, cos, sin, batch, carried: block(x.unsqueeze(0), cos, sin, carried=carried)[0]
        beside = block.attn.beside(keys.dtype)
        attention = ExtentAttention(block.attn, keys=keys, values=values, window=window, beside=beside)
        twin = _with(block, {"attn": attention})
        return lambda x, cos, sin, batch, carried: twin(x.unsqueeze(0), cos, sin, None, batch, carried=carried)[0]

    def hidden(self, pieces: Sequence[Piece], wanted: Sequence[int] | None = None) -> Tensor:
        """Returns hidden states before the output projection, (n, C).

        Args:
            pieces: those of one run are neighbours.
            wanted: indices of the tokens whose hidden states are returned, in order; None are all. The last layer
                computes only these, where it is compiled.
        """
        if self.by_run and len({piece.run for piece in pieces}) > 1:
            groups = [list(group) for _, group in groupby(pieces, lambda piece: piece.run)]
            hidden = torch.cat([self.hidden(group) for group in groups])
            return hidden if wanted is None else hidden[wanted]
        self._spans[:] = _run_spans([(piece.run, len(piece.ids)) for piece in pieces])
        batch = Batch(pieces, self.model.transformer.wte.weight.device, self.in_kernels, wanted)
        rope = self.model.rope
        usual = rope(batch.positions, 0)
        if any(piece.is_long for piece in pieces):
            long = batch.is_long.unsqueeze(-1)
            (cos, sin), (long_cos, long_sin) = usual, rope(batch.positions, self.model.config.block_size)
            usual = torch.where(long, long_cos, cos), torch.where(long, long_sin, sin)
        cos_sin = rope.spread(usual, batch.positions)  # (N, rope_n_elem)
        x = self.model.embed(batch.ids)  # (N, C)
        x = x.float() if self.is_fast else x
        carried = self.model.carried(batch.ids.unsqueeze(0), x.unsqueeze(0))
        self._is_packed, self._may_not_wait = not self._may_not_wait, False
        layers = self.layers if self._is_packed else self._all_made(self.model.transformer.h)
        for layer, (cos, sin) in zip(layers, cos_sin, strict=True):
            x = layer(x, cos, sin, batch, carried)
        if batch.wanted is not None and len(x) != len(batch.wanted):
            x = x[batch.wanted]
        return self.model.transformer.ln_f(x)

    def logits(self, hidden: Tensor, runs: Sequence[str | None]) -> Tensor:
        """Returns the logits, (n, V), of hidden states (n, C) of these runs, of the last pass."""
        self._spans[:] = _run_spans([(run, 1) for run in runs])
        head = self.lm_head if self._is_packed else self.model.lm_head
        return finished_logits(head(hidden), self.model.config)


def _fast_block(block: Any, window: int) -> nn.Module:
    """Returns a block with packed weights, compiled if possible; computes nothing, since threads know no autocast."""
    return scripted_block(block, window) if scriptable(block) else packed(block)


def _run_spans(parts: Sequence[tuple[str | None, int]]) -> list[RunSpan]:
    """Returns the spans of neighbours of one run, of which (run, number of tokens) is given; all, if it is one run."""
    spans, at = [], 0
    for run, group in groupby(parts, lambda part: part[0]):
        begin, at = at, at + sum(n for _, n in group)
        spans.append((run, slice(begin, at)))
    return spans if len(spans) > 1 else [(run, slice(None)) for run, _ in spans]


def _with(module: nn.Module, others: Mapping[str, nn.Module]) -> Any:
    """Returns a module that shares everything with `module` but the modules at these paths."""
    if not others:
        return module
    children = dict(module._modules)
    for name in {path.split(".")[0] for path in others}:
        below = {path.partition(".")[2]: m for path, m in others.items() if path.split(".")[0] == name}
        child = children[name]
        assert child is not None
        children[name] = below.get("") or _with(child, below)
    twin = copy.copy(module)
    twin._modules = children
    return twin
