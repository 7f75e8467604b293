"""Forward and backward pass of the blocks as CUDA graphs: recorded once, then replayed without launching each kernel.

On an H100, a 7B model computes 4,096 tokens in less time than Python takes to launch all of its kernels; a small model
computes far less for each of them.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.data.packing import Packing
from lit_gpt.layers.attention import Documents, SharedPrefixes, flash_can
from lit_gpt.model import GPT
from lit_gpt.resources import never_waiting

_PREFIXES = 12
"""Number of shared prefixes that a recording has room for."""
_PARTS = (1, 2, 4, 8)
"""Recorded sizes as fractions of a full micro-batch: the last micro-batch of a step is seldom full."""


def recorded_hidden(model: GPT, packing: Packing, lengths: np.ndarray, enabled: bool = True) -> Callable[..., Tensor]:
    """Returns `model.hidden` for packed documents, replayed from a recording where that is possible.

    Afterwards gradients must be zeroed in place, never set to None: the recording adds to those very tensors.

    Args:
        packing: how samples share a micro-batch.
        lengths: tokens of each training sample.
    """
    if not enabled or not _can_record(model):
        return model.hidden
    size = f"micro-batches of up to {packing.max_tokens:,} tokens"
    print(f"Recording the training step for {size}; --compile false leaves it out")
    try:
        return Recorder(model, packing, lengths)
    except _Waits as e:
        print(f"The training step is not recorded: {e}")
        return model.hidden


def _can_record(model: GPT) -> bool:
    """Returns whether nothing of the forward pass depends on values or lengths that only the host knows."""
    c, weight = model.config, model.transformer.wte.weight
    heads = None if c.mixers else model.attention_heads  # a recurrence goes by the lengths of its texts
    fixed = c.mlp != "moe" and model.rope.long_from is None and model.n_recomputed == 0
    n = sum(p.numel() for p in model.parameters())
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fixed = fixed and n_trained < n / 4  # the gradients of a recording are all there at once
    if heads is None or not fixed or torch.is_autocast_enabled("cuda"):
        return False
    return flash_can(weight, heads)


class _Waits(Exception):
    """The forward pass makes the host wait for the GPU, or does something else that cannot be recorded."""


class Recorder:
    """A stand-in for `model.hidden` with recordings of several sizes; what fits none of them is run as usual."""

    def __init__(self, model: GPT, packing: Packing, lengths: np.ndarray) -> None:
        self.model, max_tokens = model, packing.max_tokens
        self.longest = int(min(max_tokens, lengths.max()))
        expected = max_tokens / max(1.0, float(lengths.mean()))
        self.shares = packing.share_up_to > 0
        # slots for pieces, padding included: samples without their shared prefix are shorter, so more of them fit
        self.slots = min(max_tokens, 8 + round((4 if self.shares else 2) * expected))
        sizes = sorted({-(-max_tokens // part) for part in _PARTS}, reverse=True)
        # one at a time is in use, so that all live in the same memory: that of one pool and one stream
        capture = {"pool": torch.cuda.graph_pool_handle(), "stream": torch.cuda.Stream()}
        self.recordings = [
            _Recording(model, size, slots=self.slots, longest=self.longest, shares=self.shares, capture=capture)
            for size in sizes
        ]

    def __call__(self, idx: Tensor, documents: Documents) -> Tensor:
        """Returns what `GPT.hidden` does, perhaps with rows of padding at the end, (1, >= T, C)."""
        room = filling(documents.lengths, [r.size for r in self.recordings], self.slots, self.longest)
        if room is None or not torch.is_grad_enabled():
            return self.model.hidden(idx, documents=documents)
        which, padding = room
        recording = self.recordings[which]
        if not prefixes_fit(documents, recording.documents):
            return self.model.hidden(idx, documents=documents)
        recording.set(idx, documents, padding)
        return _Replay.apply(recording.anchor, recording)


def filling(lengths: tuple[int, ...], sizes: list[int], slots: int, longest: int) -> tuple[int, tuple[int, ...]] | None:
    """Returns the index of the smallest size that fits documents, and the lengths of documents of padding to fill it.

    Args:
        lengths: tokens of each document.
        slots: largest number of documents, padding included.
        longest: most tokens of a document.

    Returns:
        None if no size fits.
    """
    n_tokens = sum(lengths)
    fitting = [i for i, size in enumerate(sizes) if size >= n_tokens]
    if not fitting or max(lengths) > longest:
        return None
    best = min(fitting, key=sizes.__getitem__)
    whole, rest = divmod(sizes[best] - n_tokens, longest)
    padding = (longest,) * whole + ((rest,) if rest else ())
    return (best, padding) if len(lengths) + len(padding) <= slots else None


def prefixes_fit(documents: Documents, recorded: Documents) -> bool:
    """Returns whether a recording has room for the prefixes that these documents share."""
    if (coming := documents.shared_prefixes) is None:
        return True
    there = recorded.shared_prefixes
    return there is not None and coming.fits(there)


class _Recording:
    """The two graphs of one size, and the memory that they read and write.

    Args:
        capture: memory pool and stream of the recording.
    """

    def __init__(self, model: GPT, size: int, slots: int, longest: int, shares: bool, capture: dict[str, Any]) -> None:
        device = model.transformer.wte.weight.device
        self.size, self.slots = size, slots
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.idx = torch.zeros(1, size, dtype=torch.int64, device=device)
        ends = torch.arange(1, slots + 1, device=device, dtype=torch.int64) * longest
        self.offsets = torch.nn.functional.pad(ends.clamp(max=size), (1, 0)).int()
        self.positions = torch.arange(size, device=device) % longest
        self.shared_prefixes = SharedPrefixes.empty(size, _PREFIXES, longest, device) if shares else None
        # of the lengths, only the longest is read
        documents = self.documents = Documents(
            (longest,),
            self.offsets,
            self.positions,
            n_sharing=(),
            shared_prefixes=self.shared_prefixes,
            keys=torch.zeros(size, dtype=torch.int32, device=device),
        )
        trained = [p for p in model.parameters() if p.requires_grad]
        for p in trained:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad

        side = capture["stream"]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles and sets up what a recording must not
            for once_more in (False, True):
                try:
                    with never_waiting() if once_more else nullcontext():
                        hidden = model.hidden(self.idx, documents=documents)
                        torch.autograd.grad(hidden, trained, torch.zeros_like(hidden), allow_unused=True)
                except RuntimeError as e:
                    if once_more and "synchroniz" in str(e):
                        raise _Waits(str(e).splitlines()[0]) from e
                    raise
            del hidden
        torch.cuda.current_stream().wait_stream(side)

        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.forward, **capture):
                hidden = model.hidden(self.idx, documents=documents)
            self.d_hidden = torch.zeros_like(hidden)
            with torch.cuda.graph(self.backward, **capture):
                gradients = torch.autograd.grad(hidden, trained, self.d_hidden, allow_unused=True)
                pairs = [(p.grad, g) for p, g in zip(trained, gradients, strict=True) if g is not None]
                torch._foreach_add_(*map(list, zip(*pairs, strict=True)))
        except RuntimeError as e:  # such as a graph of autograd that is still alive, and lives on another stream
            raise _Waits(str(e).splitlines()[0]) from e
        self.hidden = hidden.detach()

    def set(self, idx: Tensor, documents: Documents, padding: tuple[int, ...]) -> None:
        """Copies a micro-batch to where the graphs read it, with documents of padding after it."""
        n = idx.size(1)
        self.idx[:, :n].copy_(idx)
        self.positions[:n].copy_(documents.positions)
        if self.documents.keys is not None and documents.keys is not None:
            self.documents.keys[:n].copy_(documents.keys)
        ends = np.cumsum((n, *padding))
        tail = np.full(self.slots + 1 - len(documents.offsets), self.size, dtype=np.int32)
        tail[: len(padding)] = ends[1:]
        self.offsets[: len(documents.offsets)].copy_(documents.offsets)
        self.offsets[len(documents.offsets) :].copy_(torch.from_numpy(tail), non_blocking=True)
        # the padding keeps tokens and positions of an earlier micro-batch: it carries no loss
        if self.shared_prefixes is not None:
            self.shared_prefixes.copy(documents.shared_prefixes)


class _Replay(Function):
    """Replays the recorded forward pass, and in backward the recorded backward pass, which adds to the gradients."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, recording: _Recording) -> Tensor:
        ctx.recording = recording
        recording.forward.replay()
        return recording.hidden.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[None, None]:
        ctx.recording.d_hidden.copy_(d_hidden)
        ctx.recording.backward.replay()
        return None, None
