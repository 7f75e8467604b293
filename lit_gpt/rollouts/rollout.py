"""A rollout: answers of the model's own with their rewards, as rows of answers that a step learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_gpt.data.answers import Answers, grouped
from lit_gpt.data.batches import AnswerBatch, micro_batches
from lit_gpt.data.dealing import dealt
from lit_gpt.data.packing import Packing
from lit_gpt.data.store import IGNORE, stack
from lit_gpt.errors import UserError
from lit_gpt.files import replace_with


@dataclass(frozen=True)
class RolloutBatch(AnswerBatch):
    """A micro-batch of answers of the model's own."""

    rewards: Tensor
    """(n_answers,) fp32."""
    idle: Tensor
    """(n_answers,) fp32: 1 where all answers of the group have the same reward."""
    advantage: Tensor
    """(n_answers,) fp32: how much better an answer is than the mean of its group."""
    old: Tensor
    """(n_targets,) fp32: log-probabilities at the rollout; NaN where they are those of now."""
    base: Tensor
    """(n_targets,) fp32: log-probabilities without the updates; 0 where nobody asked."""
    more: Tensor
    """Sums of the figures of answers that need no forward pass, (n,)."""
    n_prompts: int
    """Prompts that are counted here: of a group in several micro-batches, the first counts it."""
    n_without: int
    """Answers that need no forward pass, and are terms of the loss all the same."""

    @property
    def n_samples(self) -> int:
        return self.n_prompts

    @property
    def n_terms(self) -> int:
        """Number of terms that the loss is a sum of: here, an answer each."""
        return self.n_answers + self.n_without


@dataclass(frozen=True)
class Rollout:
    """Answers to the prompts of a few steps, group by group."""

    answers: Answers
    """A row a prompt, with as many answers as a group has."""
    rewards: np.ndarray
    """(n_answers,) fp32."""
    old: np.ndarray
    """(tokens of all answers with their prompts,) fp32: log-probabilities at the rollout, NaN where not computed."""
    base: np.ndarray
    """The same of the model without its updates, 0 where not computed."""

    def save(self, path: Path) -> None:
        """Writes the rollout, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        a = self.answers
        arrays: dict[str, Any] = {"ids": a.ids, "labels": a.labels, "inner": a.inner, "firsts": a.firsts}
        arrays |= {"rewards": self.rewards, "old": self.old, "base": self.base}

        def fill(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez(file, **arrays)

        replace_with(path, fill)

    def of_rows(self, rows: Sequence[int], normalization: str) -> np.ndarray:
        """Returns the advantages of the answers of these rows, (n,): rewards less the mean of their group."""
        rewards = self.rewards.reshape(len(self.answers), -1)[list(rows)]
        advantages = rewards - rewards.mean(1, keepdims=True)
        if normalization == "grpo":
            advantages = advantages / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
        return advantages.astype(np.float32)


def load_rollout(path: Path) -> Rollout:
    """Returns a rollout that was saved.

    Raises:
        UserError: the file is gone or damaged.
    """
    try:
        with np.load(path) as found:
            arrays = dict(found)
        samples = stack([])
        samples = type(samples)(arrays["ids"], arrays["labels"], arrays["inner"])
        answers = grouped(samples, arrays["firsts"])
        return Rollout(answers, arrays["rewards"], arrays["old"], arrays["base"])
    except (OSError, ValueError, KeyError, EOFError) as e:
        way = "--resume a checkpoint before it, whose next step draws answers anew"
        raise UserError(f"the answers {path} that this step learns from are gone or damaged; {way}") from e


def rollout_of(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], rewards: np.ndarray
) -> Rollout:
    """Returns the rollout of groups of answers to prompts, all as token ids."""
    samples = [
        ([*prompt, *answer], [IGNORE] * len(prompt) + list(answer))
        for prompt, group in zip(prompts, answers, strict=True)
        for answer in group
    ]
    size = len(answers[0])
    made = grouped(stack(samples), np.arange(0, len(samples) + 1, size))
    n = len(made.ids)
    return Rollout(made, rewards.astype(np.float32), np.full(n, np.nan, np.float32), np.zeros(n, np.float32))


def interleaved(parts: Sequence[Rollout]) -> Rollout:
    """Returns one rollout of several that were dealt the prompts in turn: the first of each, then the second of each.

    Args:
        parts: with as many prompts each, but that the last ones may have one less.
    """
    if len(parts) == 1:
        return parts[0]
    order = [(part, i) for i in range(len(parts[0].answers)) for part in parts if i < len(part.answers)]
    numbers = [(part, a) for part, i in order for a in range(*part.answers.firsts[i : i + 2].tolist())]
    spans = [(part, slice(*part.answers.inner[a : a + 2].tolist())) for part, a in numbers]

    def of_tokens(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name)[span] for part, span in spans])

    drawn = [part.answers.answer(a) for part, a in numbers]
    samples = stack([(ids.tolist(), labels.tolist()) for ids, labels in drawn])
    sizes = [int(part.answers.firsts[i + 1] - part.answers.firsts[i]) for part, i in order]
    rewards = np.array([part.rewards[a] for part, a in numbers], dtype=np.float32)
    return Rollout(grouped(samples, np.cumsum([0, *sizes])), rewards, of_tokens("old"), of_tokens("base"))


def batches_of(
    rollout: Rollout,
    rows: Sequence[int],
    packing: Packing,
    *,
    normalization: str,
    keeps_all: bool,
    mine: tuple[int, int] = (0, 1),
) -> list[RolloutBatch]:
    """Returns micro-batches of the rows of a step, or those of one device; a group too long for one is divided.

    Groups in which all rewards are equal teach nothing: they are not computed, unless `keeps_all` says so, and the
    first device counts them.

    Args:
        mine: number of the device, from 0, and how many there are.
    """
    answers, advantages = rollout.answers, rollout.of_rows(rows, normalization)
    size = advantages.shape[1]
    active = [k for k, a in enumerate(advantages) if keeps_all or a.any()] or [0]
    here = dealt(answers.lengths[list(rows)], active, mine[1])[mine[0]]
    if not here:
        return []
    parts, of_part = [], []  # answers of each part of a group, and its place among the rows
    for k in here:
        first = int(answers.firsts[rows[k]])
        for part in _parts(answers, first, size, packing.max_tokens):
            parts.append(part)
            of_part.append(k)
    cut = [answers.answer(a) for part in parts for a in part]
    divided = grouped(
        stack([(ids.tolist(), labels.tolist()) for ids, labels in cut]), np.cumsum([0, *(len(part) for part in parts)])
    )
    numbers = [a for part in parts for a in part]  # in the rollout
    left_out = [k for k in range(len(rows)) if k not in set(active)]
    found: list[RolloutBatch] = []
    counted: set[int] = set()
    for batch in micro_batches(divided, range(len(divided)), packing):
        assert isinstance(batch, AnswerBatch)
        drawn = [numbers[a] for a in batch.answers]
        groups = {of_part[row] for row in batch.rows} - counted
        counted |= groups
        first = not found and mine[0] == 0  # which is never without a group
        found.append(
            RolloutBatch(
                **{name: value for name, value in vars(batch).items()},
                rewards=torch.from_numpy(rollout.rewards[drawn]),
                idle=torch.tensor([float(not advantages[of_part[row]].any()) for row in _rows(batch, divided)]),
                advantage=torch.tensor([advantages.reshape(-1)[_place(a, answers, rows, size)] for a in drawn]),
                old=_at_targets(rollout.old, answers, drawn),
                base=_at_targets(rollout.base, answers, drawn),
                more=torch.tensor(_figures(rollout, [rows[k] for k in left_out]) if first else [0.0] * 3),
                n_prompts=len(groups) + (len(left_out) if first else 0),
                n_without=size * len(left_out) if first else 0,
            )
        )
    return found


def _parts(answers: Answers, first: int, size: int, max_tokens: int) -> list[list[int]]:
    """Returns the answers of a group in parts that a micro-batch has room for, with the prompt once in each."""
    parts: list[list[int]] = [[]]
    prompt = len(answers.prompt(answers.row_of(first))) - 1  # the last token predicts each answer's first one
    room = max_tokens - prompt
    for a in range(first, first + size):
        n = int(answers.computed_of_answers[a]) - prompt
        if parts[-1] and n > room:
            parts.append([])
            room = max_tokens - prompt
        parts[-1].append(a)
        room -= n
    return parts


def _rows(batch: AnswerBatch, data: Answers) -> list[int]:
    """Returns the row of each answer of a batch."""
    return [data.row_of(a) for a in batch.answers]


def _place(a: int, answers: Answers, rows: Sequence[int], size: int) -> int:
    """Returns the index of an answer among those of `rows`."""
    row = answers.row_of(a)
    return list(rows).index(row) * size + a - int(answers.firsts[row])


def _at_targets(values: np.ndarray, answers: Answers, numbers: Sequence[int]) -> Tensor:
    """Returns the values of a rollout at the targets of some answers, laid end to end."""
    found = []
    for a in numbers:
        span = slice(int(answers.inner[a]) + 1, int(answers.inner[a + 1]))
        found.append(values[span][np.asarray(answers.labels[span]) != IGNORE])
    return torch.from_numpy(np.concatenate(found))


def _figures(rollout: Rollout, rows: Sequence[int]) -> list[float]:
    """Returns sums over the answers of rows: rewards, tokens, and their number, all of them idle."""
    numbers = [a for i in rows for a in range(int(rollout.answers.firsts[i]), int(rollout.answers.firsts[i + 1]))]
    n_tokens = sum(int(rollout.answers.n_targets_of[a]) for a in numbers)
    return [float(rollout.rewards[numbers].sum()), float(n_tokens), float(len(numbers))]
