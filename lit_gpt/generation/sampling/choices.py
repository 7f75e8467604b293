"""Ways to draw a token for each line of logits, each with settings and random numbers of its own.

Letters: B lines of logits, V padded vocabulary, n candidates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_gpt.generation.request import Sampling
from lit_gpt.generation.sampling.noise import waiting_times
from lit_gpt.generation.sampling.penalties import on

_FEW = 512
"""Candidates among which top_p ends in nearly all texts: to find them takes a tenth of the time of sorting all."""


class Settings(NamedTuple):
    """Settings of lines that are drawn in the same way, (B, 1) each."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    log_min_p: Tensor
    most: int
    """Largest top_k."""
    has_top_p: bool
    has_min_p: bool

    @staticmethod
    def of(settings: Sequence[Sampling], vocab_size: int, device: torch.device) -> "Settings":
        """Returns the settings of rows as tensors."""
        top_k = [min(s.top_k or vocab_size, vocab_size) for s in settings]
        temperature, top_p, min_p = (
            on(device, [getattr(s, name) for s in settings], torch.float32).unsqueeze(1)
            for name in ("temperature", "top_p", "min_p")
        )
        return Settings(
            temperature=temperature,
            top_k=on(device, top_k).unsqueeze(1),
            top_p=top_p,
            log_min_p=min_p.log(),
            most=max(top_k),
            has_top_p=any(s.top_p < 1 for s in settings),
            has_min_p=any(s.min_p > 0 for s in settings),
        )


def from_all(logits: Tensor, keys: Tensor, settings: Settings) -> Tensor:
    """Draws a token per line, (B,), from all that min_p leaves."""
    logits = logits / settings.temperature
    if settings.has_min_p:
        logits = _without_unlikely(logits, logits.amax(-1, keepdim=True), settings)
    ids = torch.arange(logits.size(1), dtype=torch.int32, device=logits.device)
    at_once = 1 if logits.device.type == "cpu" else len(logits)  # what is made of one line fits a core's cache
    lines = zip(logits.split(at_once), keys.split(at_once), strict=True)
    return torch.cat([(line.softmax(-1) / waiting_times(k, ids)).argmax(-1) for line, k in lines])


def most_likely(logits: Tensor, keys: Tensor, settings: Settings) -> Tensor:
    """Returns the most likely token per line, (B,)."""
    return logits.argmax(-1)


def from_top_k(logits: Tensor, keys: Tensor, settings: Settings) -> Tensor:
    """Draws a token per row, (B,), from its top_k most likely ones, of which top_p and min_p leave some."""
    values, ids = logits.topk(settings.most)  # most likely first
    values = values / settings.temperature
    ranks = torch.arange(values.size(1), device=values.device)
    values = values.masked_fill(ranks >= settings.top_k, -torch.inf)
    return _from_sorted(values, values.softmax(-1), ids=ids, keys=keys, settings=settings)


def from_top_p(logits: Tensor, keys: Tensor, settings: Settings) -> Tensor:
    """Draws a token per row, (B,), from the most likely ones that reach top_p."""
    p = (logits / settings.temperature).softmax(-1)
    n = p.size(1)
    if p.device.type == "cpu" and n > _FEW:  # on a GPU, the host would have to wait for the answer
        most, ids = p.topk(_FEW)
        if (most.sum(-1, keepdim=True) >= settings.top_p).all():
            return _from_sorted(most.log(), most, ids=ids, keys=keys, settings=settings)
    p, ids = p.sort(-1, descending=True)
    return _from_sorted(p.log(), p, ids=ids, keys=keys, settings=settings)


def _from_sorted(values: Tensor, p: Tensor, *, ids: Tensor, keys: Tensor, settings: Settings) -> Tensor:
    """Draws one of `ids` per row, (B,), with logits `values` and probabilities p, (B, n), most likely first."""
    if settings.has_top_p:  # a token stays if those before it have not reached top_p
        reached = p.cumsum(-1) - p >= settings.top_p
        reached[:, 0] = False
        values = values.masked_fill(reached, -torch.inf)
    if settings.has_min_p:
        values = _without_unlikely(values, values[:, :1], settings)
    if settings.has_top_p or settings.has_min_p:
        p = values.softmax(-1)
    return ids.gather(-1, (p / waiting_times(keys, ids.int())).argmax(-1, keepdim=True)).squeeze(-1)


def _without_unlikely(logits: Tensor, largest: Tensor, settings: Settings) -> Tensor:
    """Returns logits without those of tokens whose probability is below min_p times the largest."""
    return logits.masked_fill(logits < largest + settings.log_min_p, -torch.inf)
