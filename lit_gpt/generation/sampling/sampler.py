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
from lit_gpt.generation.request import Request, Sampling
from lit_gpt.generation.sampling.choices import Settings, from_all, from_top_k, from_top_p, most_likely
from lit_gpt.generation.sampling.noise import key
from lit_gpt.generation.sampling.penalties import Penalties, on

_GREEDY_BELOW = 1e-5
"""Temperatures under which the most likely token is taken: clients that mean 0 send 1e-7."""


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

    def clear(self) -> None:
        """Forgets all requests."""
        for row in list(self._rows):
            self.remove(row)

    def __contains__(self, row: int) -> bool:
        return row in self._rows

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
            rows, supposed = [plan.rows[i] for i in plan.penalized], [ahead[i] for i in plan.penalized]
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
                Settings.of([members[i].sampling for i in lines], self.vocab_size, self.device),
            )
            for way, lines in ways.items()
        ]
        bias = [(i, t, v) for i, m in enumerate(members) for t, v in m.sampling.logit_bias.items()]
        banned = [
            (i, t, 0.0) for i, m in enumerate(members) if early[i] for t in m.stop_ids if 0 <= t < self.vocab_size
        ]
        penalized = [i for i, r in enumerate(rows) if r in self._penalties]
        return _Plan(
            rows=rows,
            early=early,
            groups=groups,
            is_greedy=not ways.keys() - {most_likely},
            bias=self._triples(bias),
            banned=self._triples(banned),
            penalized=penalized,
            penalized_lines=on(self.device, penalized),
        )

    def _way(self, s: Sampling) -> Callable[..., Tensor]:
        """Returns the cheapest function that draws as `s` says."""
        if s.temperature < _GREEDY_BELOW:
            return most_likely
        if s.top_k is not None and s.top_k < self.vocab_size:
            return from_top_k
        return from_all if s.top_p >= 1 else from_top_p

    def _triples(self, found: list[tuple[int, int, float]]) -> tuple[Tensor, Tensor, Tensor] | None:
        """Returns lines, ids and values as tensors; None if there are none."""
        if not found:
            return None
        lines, ids, values = zip(*found, strict=True)
        return on(self.device, lines), on(self.device, ids), on(self.device, values, torch.float32)


def check_bias(sampling: Sampling, vocab_size: int) -> None:
    """Raises UserError if a logit_bias is for a token that a model does not have, or is no number."""
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocab_size:
            raise UserError(f"logit_bias is for token {token}, and the model has tokens 0 to {vocab_size - 1}")
        if bias != bias:
            raise UserError(f"logit_bias of token {token} is no number")


@dataclass
class _Row:
    """A row's request, as far as it matters for drawing, and the number of tokens that it has drawn."""

    sampling: Sampling
    seed: int
    stop_ids: list[int]
    min_new_tokens: int
    n_drawn: int = 0


class _Group(NamedTuple):
    """Lines of logits that are drawn in the same way."""

    lines: Tensor
    way: Callable[..., Tensor]
    settings: Settings


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
