"""Draws tokens from logits without making the host wait for the GPU.

`Sampler` draws for rows that each have their own `Sampling`; `sample` for rows that share one.

Letters: B lines of logits of a step, V padded vocabulary, n candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.generation.noise import key, waiting_times
from lit_gpt.generation.penalties import Penalties, on
from lit_gpt.generation.request import Request, Sampling

_GREEDY_BELOW = 1e-5
"""Temperatures under which the most likely token is taken: clients that mean 0 send 1e-7."""
_FEW = 512
"""Candidates among which top_p ends in nearly all texts: to find them takes a tenth of the time of sorting all."""


def sample(logits: Tensor, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """Samples one token id per row, (B,), from logits (B, V).

    Args:
        logits: logits of the next token.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample from the k most likely tokens only; None from all.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is None or top_k >= logits.size(-1):
        return _sample_index(logits.softmax(-1))
    values, ids = logits.topk(top_k)
    return ids.gather(-1, _sample_index(values.softmax(-1)).unsqueeze(-1)).squeeze(-1)


def _sample_index(probabilities: Tensor) -> Tensor:
    """Samples an index per row, (B,), with `probabilities` (B, n).

    If each index has an exponential waiting time with its probability as rate, the shortest one is at an index with
    that index's probability. `torch.multinomial` does the same, but makes the host wait to check its input.
    """
    return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)


class Sampler:
    """Draws the next token of rows that each have their own request.

    What a row draws depends on its request, its seed and its logits alone, whatever its neighbours are.

    Args:
        vocab_size: V, number of logits of a row.
        device: where logits are.
    """

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size, self.device = vocab_size, torch.device(device)
        self._rows: dict[int, _Row] = {}
        self._penalties = Penalties(vocab_size, self.device)
        self._plan: _Plan | None = None
        self._ids = torch.arange(vocab_size, dtype=torch.int32, device=self.device)

    def add(self, row: int, request: Request) -> None:
        """Makes `row` draw for a request from its first new token on.

        Raises:
            UserError: a logit_bias is for a token that the model does not have.
        """
        check_bias(request.sampling, self.vocab_size)
        seed = request.sampling.seed
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        self._rows[row] = _Row(request.sampling, seed, sorted(request.stop_ids), request.min_new_tokens)
        self._penalties.add(row, request)
        self._plan = None

    def remove(self, row: int) -> None:
        """Forgets the request of a row."""
        del self._rows[row]
        self._penalties.remove(row)
        self._plan = None

    def sample(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Draws a token for each of `rows`, (B,), from logits (B, V) fp32, and counts it as part of the row's text."""
        ids = self.draw(logits, rows)
        self.advance(rows, ids)
        return ids

    def draw(self, logits: Tensor, rows: Sequence[int], ahead: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Returns what `sample` does and changes nothing.

        Args:
            logits: (B, V) fp32; not changed.
            rows: the row of each line of logits; a row may come several times.
            ahead: for each line, tokens that the row's text is supposed to go on with before the one to be drawn;
                none if not given.
        """
        ahead = [()] * len(rows) if ahead is None else ahead
        members = [self._rows[r] for r in rows]
        drawn = [m.n_drawn + len(a) for m, a in zip(members, ahead, strict=True)]
        early = [n < m.min_new_tokens for m, n in zip(members, drawn, strict=True)]
        if self._plan is None or self._plan.rows != list(rows) or self._plan.early != early:
            self._plan = self._make_plan(list(rows), early)
        plan = self._plan
        logits = self._changed(logits, plan, ahead)
        if plan.is_greedy:
            return logits.argmax(-1)
        keys = on(self.device, [key(m.seed, n) for m, n in zip(members, drawn, strict=True)], torch.int32)
        if len(plan.groups) == 1:
            return plan.groups[0].way(logits, keys, plan.groups[0].settings)
        ids = torch.empty(len(rows), dtype=torch.long, device=self.device)
        for lines, way, settings in plan.groups:
            ids[lines] = way(logits[lines], keys[lines], settings)
        return ids

    def advance(self, rows: Sequence[int], ids: Tensor) -> None:
        """Counts tokens as drawn: `ids`, (B,), are the next of `rows`, of which one may come several times."""
        for row in rows:
            self._rows[row].n_drawn += 1
        self._penalties.advance(rows, ids)

    def _changed(self, logits: Tensor, plan: "_Plan", ahead: Sequence[Sequence[int]]) -> Tensor:
        """Returns logits after logit_bias, penalties and stop tokens that are not due; a copy if there are any."""
        if plan.bias is None and not plan.penalized and plan.banned is None:
            return logits
        logits = logits.clone()
        if plan.bias is not None:
            logits.index_put_(plan.bias[:2], plan.bias[2], accumulate=True)
        if plan.penalized:
            rows, supposed = ([x[i] for i in plan.penalized] for x in (plan.rows, ahead))
            self._penalties.apply(logits, plan.penalized_lines, rows, supposed)
        if plan.banned is not None:
            logits[plan.banned[:2]] = -torch.inf
        return logits

    def _make_plan(self, rows: list[int], early: list[bool]) -> "_Plan":
        """Returns how to draw for rows.

        Args:
            early: for each, whether its stop tokens are not due yet.
        """
        members = [self._rows[r] for r in rows]
        ways: dict[Callable[..., Tensor], list[int]] = {}
        for i, m in enumerate(members):
            ways.setdefault(self._way(m.sampling), []).append(i)
        groups = [
            _Group(
                on(self.device, lines),
                way,
                _Settings.of([members[i].sampling for i in lines], self.vocab_size, self.device),
            )
            for way, lines in ways.items()
        ]
        bias = [(i, t, v) for i, m in enumerate(members) for t, v in m.sampling.logit_bias.items()]
        banned = [(i, t, 0.0) for i, m in enumerate(members) if early[i] for t in m.stop_ids if t < self.vocab_size]
        penalized = [i for i, r in enumerate(rows) if r in self._penalties]
        return _Plan(
            rows=rows,
            early=early,
            groups=groups,
            is_greedy=not ways.keys() - {_most_likely},
            bias=self._triples(bias),
            banned=self._triples(banned),
            penalized=penalized,
            penalized_lines=on(self.device, penalized),
        )

    def _way(self, s: Sampling) -> Callable[..., Tensor]:
        """Returns the cheapest function that draws as `s` says."""
        if s.temperature < _GREEDY_BELOW:
            return _most_likely
        if s.top_k is not None and s.top_k < self.vocab_size:
            return _from_top_k
        return self._from_all if s.top_p >= 1 else _from_top_p

    def _from_all(self, logits: Tensor, keys: Tensor, settings: "_Settings") -> Tensor:
        """Draws a token per row, (B,), from all that min_p leaves."""
        logits = logits / settings.temperature
        if settings.has_min_p:
            logits = _without_unlikely(logits, logits.amax(-1, keepdim=True), settings)
        return (logits.softmax(-1) / waiting_times(keys, self._ids)).argmax(-1)

    def _triples(self, found: list[tuple[int, int, float]]) -> tuple[Tensor, Tensor, Tensor] | None:
        """Returns lines, ids and values as tensors; None if there are none."""
        if not found:
            return None
        lines, ids, values = zip(*found, strict=True)
        return on(self.device, lines), on(self.device, ids), on(self.device, values, torch.float32)


def check_bias(sampling: Sampling, vocab_size: int) -> None:
    """Raises UserError if a logit_bias is for a token that a model does not have."""
    for token in sampling.logit_bias:
        if not 0 <= token < vocab_size:
            raise UserError(f"logit_bias is for token {token}, and the model has tokens 0 to {vocab_size - 1}")


@dataclass
class _Row:
    """A row's request, as far as it matters for drawing, and the number of tokens that it has drawn."""

    sampling: Sampling
    seed: int
    stop_ids: list[int]
    min_new_tokens: int
    n_drawn: int = 0


class _Settings(NamedTuple):
    """Settings of rows that are drawn in the same way, (B, 1) each."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    log_min_p: Tensor
    most: int
    """Largest top_k."""
    has_top_p: bool
    has_min_p: bool

    @staticmethod
    def of(settings: Sequence[Sampling], vocab_size: int, device: torch.device) -> "_Settings":
        """Returns the settings of rows as tensors."""
        top_k = [min(s.top_k or vocab_size, vocab_size) for s in settings]
        temperature, top_p, min_p = (
            on(device, [getattr(s, name) for s in settings], torch.float32).unsqueeze(1)
            for name in ("temperature", "top_p", "min_p")
        )
        return _Settings(
            temperature=temperature,
            top_k=on(device, top_k).unsqueeze(1),
            top_p=top_p,
            log_min_p=min_p.log(),
            most=max(top_k),
            has_top_p=any(s.top_p < 1 for s in settings),
            has_min_p=any(s.min_p > 0 for s in settings),
        )


class _Group(NamedTuple):
    """Lines of logits that are drawn in the same way."""

    lines: Tensor
    way: Callable[..., Tensor]
    settings: _Settings


class _Plan(NamedTuple):
    """How to draw for the rows of a step; it serves until rows change."""

    rows: list[int]
    early: list[bool]
    groups: list[_Group]
    is_greedy: bool
    bias: tuple[Tensor, Tensor, Tensor] | None
    """Lines, token ids and summands."""
    banned: tuple[Tensor, Tensor, Tensor] | None
    """Lines and token ids of stop tokens that are not due."""
    penalized: list[int]
    """Lines with penalties."""
    penalized_lines: Tensor


def _most_likely(logits: Tensor, keys: Tensor, settings: _Settings) -> Tensor:
    return logits.argmax(-1)


def _from_top_k(logits: Tensor, keys: Tensor, settings: _Settings) -> Tensor:
    """Draws a token per row, (B,), from its top_k most likely ones, of which top_p and min_p leave some."""
    values, ids = logits.topk(settings.most)  # most likely first
    values = values / settings.temperature
    ranks = torch.arange(values.size(1), device=values.device)
    values = values.masked_fill(ranks >= settings.top_k, -torch.inf)
    return _from_sorted(values, values.softmax(-1), ids=ids, keys=keys, settings=settings)


def _from_top_p(logits: Tensor, keys: Tensor, settings: _Settings) -> Tensor:
    """Draws a token per row, (B,), from the most likely ones that reach top_p."""
    p = (logits / settings.temperature).softmax(-1)
    n = p.size(1)
    if p.device.type == "cpu" and n > _FEW:  # on a GPU, the host would have to wait for the answer
        most, ids = p.topk(_FEW)
        if (most.sum(-1, keepdim=True) >= settings.top_p).all():
            return _from_sorted(most.log(), most, ids=ids, keys=keys, settings=settings)
    p, ids = p.sort(-1, descending=True)
    return _from_sorted(p.log(), p, ids=ids, keys=keys, settings=settings)


def _from_sorted(values: Tensor, p: Tensor, *, ids: Tensor, keys: Tensor, settings: _Settings) -> Tensor:
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


def _without_unlikely(logits: Tensor, largest: Tensor, settings: _Settings) -> Tensor:
    """Returns logits without those of tokens whose probability is below min_p times the largest."""
    return logits.masked_fill(logits < largest + settings.log_min_p, -torch.inf)
