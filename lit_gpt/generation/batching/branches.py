"""Continuations of one prompt as a tree of tokens, so that one row reads and scores all of them.

Fed are the prompt and then the tokens of the tree, depth first. A token sees the prompt and the tokens between it and
the root: those whose subtree it is in. Tokens that only end a continuation are scored and not fed.

Letters: T tokens of a piece, S tokens that are there up to its last one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lit_gpt.generation.request import Scored


class Branches:
    """The tree of the continuations of a prompt.

    Attributes:
        ids: tokens that are fed after the prompt.
        positions: position in its text of each token that is fed, the prompt's included.
        ends: for each of them the index after the last one that sees it.

    Args:
        n_prompt: number of tokens of the prompt.
    """

    def __init__(self, n_prompt: int, continuations: Sequence[Sequence[int]]) -> None:
        self.n_prompt = n_prompt
        self.ids: list[int] = []
        self._targets: dict[int, list[int]] = {}
        self._at: dict[tuple[int, int], int] = {}
        """(index after which a token is scored, token) -> its place among the scores."""
        positions, ends = list(range(n_prompt)), [0] * n_prompt
        self._paths: list[list[int]] = [[] for _ in continuations]
        """For each continuation the indices after which its tokens are scored."""
        texts = [tuple(map(int, c)) for c in continuations]
        open_: list[tuple[int, int]] = []  # (index, token) on the way from the prompt to the last text
        before: tuple[int, ...] = ()
        for i in sorted(range(len(texts)), key=texts.__getitem__):
            text = texts[i]
            n_common = next((k for k, (a, b) in enumerate(zip(text, before, strict=False)) if a != b), None)
            n_common = min(len(text), len(before)) if n_common is None else n_common
            while len(open_) > min(n_common, len(text) - 1):
                ends[open_.pop()[0]] = len(positions)
            for k in range(len(open_), len(text) - 1):
                open_.append((len(positions), text[k]))
                self.ids.append(text[k])
                positions.append(n_prompt + k)
                ends.append(0)
            self._paths[i] = [n_prompt - 1, *(index for index, _ in open_[: len(text) - 1])]
            for index, token in zip(self._paths[i], text, strict=True):
                found = self._targets.setdefault(index, [])
                if token not in found:
                    found.append(token)
            before = text[:-1]
        for index, _ in open_:
            ends[index] = len(positions)
        ends[:n_prompt] = [len(positions)] * n_prompt
        self.positions, self.ends = np.array(positions), np.array(ends)
        self._texts = texts
        for index in sorted(self._targets):
            for token in self._targets[index]:
                self._at[index, token] = len(self._at)

    def targets(self, index: int) -> list[int]:
        """Returns the tokens that are scored after a token that is fed."""
        return self._targets.get(index, [])

    def scores(self, scored: Sequence[Scored]) -> tuple[tuple[Scored, ...], ...]:
        """Returns the scores of each continuation, of those of all targets in the order in which they are fed."""
        return tuple(
            tuple(scored[self._at[index, token]] for index, token in zip(path, text, strict=True))
            for path, text in zip(self._paths, self._texts, strict=True)
        )

    def mask(self, start: int, stop: int, window: int, device: torch.device) -> tuple[int, Tensor]:
        """Returns what tokens `start` to `stop` see: the first index, and from there on the summand of scores, (T, S).

        Args:
            window: number of positions that a token sees, its own included; 0 means all.
        """
        first = max(0, int(self.positions[start:stop].min()) + 1 - window) if window else 0
        queries, keys = np.arange(start, stop)[:, None], np.arange(first, stop)
        seen = (keys <= queries) & (queries < self.ends[first:stop])
        if window:
            seen &= self.positions[start:stop, None] - self.positions[first:stop] < window
        mask = torch.zeros(seen.shape, dtype=torch.float32).masked_fill_(torch.from_numpy(~seen), -torch.inf)
        return first, mask.to(device)
