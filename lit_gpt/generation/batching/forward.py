"""One forward pass for rows of different lengths: linear layers see all their tokens, attention each row's extent.

Letters: N tokens of all rows, C n_embd, H query heads, G key/value heads, R = H / G, D head_size, T tokens of a row, S
positions that they see, P positions of the pool, V padded vocabulary.
"""

import copy
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.config import Config
from lit_gpt.generation.batching.batch import Batch, Piece
from lit_gpt.generation.batching.mixing import ExtentMixing
from lit_gpt.generation.batching.pool import Pool
from lit_gpt.generation.cpu.cascade import cascade_attention
from lit_gpt.generation.cpu.products import packed
from lit_gpt.generation.cpu.scripted import scriptable, scripted_block
from lit_gpt.generation.cpu.stretches import stretch_end, stretch_of
from lit_gpt.layer_heads import kv_source
from lit_gpt.layers.attention import softmax_with_sinks
from lit_gpt.layers.cpu_matmul import upcast
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.past import Mixing
from lit_gpt.layers.per_layer import Carried
from lit_gpt.layers.rope import apply_rope
from lit_gpt.layers.self_attention import CausalSelfAttention, score_scale, softcap
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
        attention = _ExtentAttention(block.attn, keys=keys, values=values, window=window, beside=beside)
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


class _ExtentAttention(nn.Module):
    """An attention layer for tokens of many rows, which takes over the modules of `attn`.

    Args:
        keys, values: the layer's pool of positions, (P, G, D) each.
    """

    def __init__(
        self, attn: CausalSelfAttention, keys: Tensor, values: Tensor, window: int, beside: nn.Module | None
    ) -> None:
        super().__init__()
        self.attn, self.window, self.beside = attn, window, beside
        self.pools = keys, values
        groups = attn.config.n_query_groups
        self.sinks = None if attn.sinks is None else attn.sinks.detach().view(groups, -1, 1)  # (G, R, 1)
        self.by_head = tuple(pool.transpose(0, 1).unsqueeze(0) for pool in self.pools)  # (1, G, P, D)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: None, batch: Batch, *unused: Any) -> Tensor:
        """
        Args:
            x: (1, N, C).
            cos, sin: (N, rope_n_elem).
        """
        q, k, v = self.attn.split_heads(self.attn.qkv(x), cos, sin)  # (1, H, N, D), (1, G, N, D) each
        if self.attn.config.rotates_first:
            cos, sin = cos[..., :0], sin[..., :0]
        if batch.in_kernels:
            return self.attn.projected(self.decoded(q, k, v, cos=cos, sin=sin, batch=batch).transpose(0, 1), x)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if k.size(1):  # else the layer reads what an earlier one has written
            for pool, new in zip(self.pools, (k, v), strict=True):
                pool.index_copy_(0, batch.places, new[0].transpose(0, 1).to(pool.dtype))
        groups = self.attn.config.n_query_groups
        queries = q[0].transpose(0, 1).unflatten(1, (groups, -1)).split(batch.lengths)  # (T, G, R, D) each
        outputs: list[Tensor] = []
        for i, j, start, n, single in batch.parts:
            if not single:
                outputs += [self.attended(queries[at], at, batch) for at in range(i, j)]
            elif n and not self.window and not self.attn.config.attn_logit_softcapping and self.sinks is None:
                outputs.append(self.together(queries[i:j], batch.rows[i:j], start, n))
            else:
                outputs += self.singles(queries[i:j], batch.rows[i:j])
        y = torch.cat(outputs).flatten(1)  # (N, H * D)
        if self.beside is not None:
            y = y + self.beside(q)[0].transpose(0, 1).flatten(1)
        return self.attn.projected(y.unsqueeze(0), x)

    def decoded(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, batch: Batch) -> Tensor:
        """Returns attention (N, 1, H * D) of one token for each row, by our Triton kernels, for all rows at once.

        Args:
            q, k, v: not rotated, (1, H, N, D) and (1, G, N, D).
        """
        from lit_gpt.generation.kernels.attention import attention  # Triton comes with torch for GPUs only

        q, k, v = (x.transpose(0, 2) for x in (q, k, v))  # (N, H, 1, D), (N, G, 1, D)
        y = attention(
            q,
            k,
            v=v,
            cos=cos.contiguous(),
            sin=sin.contiguous(),
            cached=self.pools,
            position=batch.positions,
            scale=score_scale(self.attn.config),
            cap=self.attn.config.attn_logit_softcapping,
            window=self.window,
            base=batch.starts,
            position_stride=1,
        )
        if self.beside is not None:
            rotated = apply_rope(q, cos[:, None, None], sin[:, None, None])
            y = y + self.beside(rotated).transpose(1, 2).flatten(2)
        return y

    def together(self, queries: Sequence[Tensor], rows: Sequence[list[int]], shared: int, n: int) -> Tensor:
        """Returns attention (B, G, R, D) of rows that feed one token and share `n` keys, see `cascade_attention`."""
        starts, ends = [row[2] + n for row in rows], [row[2] + row[1] + 1 for row in rows]
        scale = score_scale(self.attn.config)
        q, (keys, values) = torch.cat(list(queries)), self.pools
        return cascade_attention(q, keys, values, starts, ends=ends, shared=shared, n=n, scale=scale)

    def singles(self, queries: Sequence[Tensor], rows: Sequence[list[int]]) -> Iterator[Tensor]:
        """Yields attention (n, G, R, D) of rows that feed one token, of each stretch of them.

        The heads of a group see the same keys: they are queries of one head.
        """
        q, ends = torch.cat(list(queries)), [row[2] + row[1] + 1 for row in rows]
        starts = [row[2] + (max(0, row[1] + 1 - self.window) if self.window else 0) for row in rows]
        i = 0
        while i < len(rows):
            j = stretch_end(starts, ends, i)
            k, v = (stretch_of(pool, starts, ends, first=i, stop=j).to(q.dtype) for pool in self.pools)
            yield _attend(q[i:j], k, v, config=self.attn.config, sinks=self.sinks)
            i = j

    def attended(self, q: Tensor, i: int, batch: Batch) -> Tensor:
        """Returns attention (T, G, R, D) of a piece's rotated queries, of the same shape, to its row's extent."""
        piece, config = batch.pieces[i], self.attn.config
        T, end = q.size(0), piece.position + q.size(0)
        first = max(0, piece.position + 1 - self.window) if self.window else 0
        mask = batch.masks(self.window, always=bool(config.attn_logit_softcapping) or self.sinks is not None)[i]
        if mask is not None:
            first = end - mask.size(1)
            mask = mask.to(q.dtype)
        k, v = (pool.narrow(2, piece.start + first, end - first).to(q.dtype) for pool in self.by_head)  # (1, G, S, D)
        if T == 1:  # of a tree
            return _attend(q, k, v, config=config, mask=mask, sinks=self.sinks)
        q = q.permute(1, 2, 0, 3)  # (G, R, T, D)
        k, v = (x.transpose(0, 1).expand(-1, q.size(1), -1, -1) for x in (k, v))  # (G, R, S, D)
        sinks = None if self.sinks is None else self.sinks.unsqueeze(-1)
        y = _attend(q, k, v, config=config, mask=mask, is_causal=mask is None, sinks=sinks)
        return y.permute(2, 0, 1, 3)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, config: Config,
    mask: Tensor | None = None, is_causal: bool = False, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Returns attention (..., T, D) of q (..., T, D) to k and v (..., S, D).

    Args:
        mask: summand of the scores, (T, S); None if every query sees every key, or all up to its own.
        is_causal: whether a query sees the keys up to its own, of as many keys as queries.
        sinks: logits beside the scores, (..., T or 1, 1).
    """
    if not config.attn_logit_softcapping and sinks is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=score_scale(config))
    dtype, (q, k, v) = q.dtype, upcast(q, k, v)
    scores = softcap(q @ k.mT * score_scale(config), config.attn_logit_softcapping).float()
    scores = scores if mask is None else scores + mask
    p = scores.softmax(-1) if sinks is None else softmax_with_sinks(scores, sinks)
    return (p.to(v.dtype) @ v).to(dtype)
