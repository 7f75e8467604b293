"""How much there is to do: samples, tokens, steps and forward passes of a run, counted on its data."""

from dataclasses import dataclass
from math import lcm

import numpy as np

from lit_gpt.args import TrainArgs, ValidationArgs
from lit_gpt.data.batches import Order
from lit_gpt.data.packing import LOOKED_AT, Packing, Prefixes, fullest, n_computed, packs, prefixes_of
from lit_gpt.data.store import IGNORE, Samples
from lit_gpt.training.validation import n_validated

_PACKED_STEPS = 100
"""Optimizer steps whose forward passes are counted one by one; the others are assumed to be alike."""

_PACKED_SAMPLES = 4 * LOOKED_AT
"""Most samples of all these steps: of larger steps there are fewer, and one of more than LOOKED_AT is divided."""
_LISTED_SAMPLES, _LISTED_EPOCHS = 2**22, 1000
"""Most samples, and epochs, whose order is made to count the padding; that of a longer run is assumed to be alike."""

COUNTED = 2**20
"""Approximate number of tokens whose labels are in memory at a time."""


@dataclass(frozen=True)
class Work:
    """The amount of work of a run."""

    n_rows: int
    """Samples in the training set."""
    n_samples: int
    """Samples that the run sees."""
    n_steps: int
    n_tokens: int
    n_computed: int
    """Tokens that are computed: a shared prefix once in each forward pass, and nothing after the last prediction."""
    n_targets: int
    squares: float
    """Sum of the squared lengths of the samples, shared prefixes counted once."""
    n_passes: int
    """Forward passes: micro-batches."""
    n_padded: int
    """Tokens of the same run in micro-batches of `micro_batch_size` samples, each padded to its longest."""
    room: int
    """Tokens that a forward pass has room for."""
    largest: int
    """Tokens of the largest forward pass, which a run tries before its first step."""
    most_targets: int
    """Most targets of a forward pass."""
    n_val_tokens: int
    """Tokens of one validation."""
    n_val_computed: int
    """Computed tokens of one validation, if shared prefixes save as much as in training."""
    n_val_targets: int
    val_squares: float
    n_validations: int
    n_saves: int
    """Most saves: at every validation, if each is the best so far, and at the interval."""

    @property
    def epochs(self) -> float:
        return self.n_samples / self.n_rows

    @property
    def filled(self) -> str:
        """Text that says how full the forward passes are; empty where each sample has its own."""
        share = self.n_computed / (self.n_passes * self.room)
        if share > 1:
            return "samples that are longer than a pass have one each"
        return f"the passes are {share:.0%} full" if self.room > 1 else ""


def work_of(
    train_data: Samples, val_data: Samples, train: TrainArgs, validation: ValidationArgs, packing: Packing, seed: int
) -> Work:
    """Returns the work of a run on its data.

    Sums over the samples of a run are exact, forward passes and padding those of its first samples for all. However
    many samples and steps the run has, time and memory are those of the data and of a few hundred thousand samples.
    """
    train_data, val_data = (data.sharing(packing.share_up_to) for data in (train_data, val_data))
    whole, lengths, targets = train_data.lengths, train_data.computed, targets_by_sample(train_data)
    n_samples = train.n_samples(len(train_data))
    order = Order(len(lengths), n_samples, seed)
    first = order.indices(0, min(_PACKED_STEPS * train.batch_size, _PACKED_SAMPLES))
    passes: list[tuple[list[int], Prefixes]] = []
    for start in range(0, len(first), at_once := min(train.batch_size, LOOKED_AT)):
        part = first[start : start + at_once]
        prefixes = prefixes_of(train_data, part, packing)
        passes += [(group, prefixes) for group in packs(lengths, part, packing.max_tokens, prefixes)]
    computed, squares = ([n_computed(lengths, *those, power) for those in passes] for power in (1, 2))
    left = float(sum(computed) / whole[first].sum())
    left_of_squares = float(sum(squares) / np.square(lengths[first]).sum())
    first_tried = fullest(lengths, packing.max_tokens, train.batch_size)
    val_whole, val_lengths, val_targets = val_data.lengths, val_data.computed, targets_by_sample(val_data)
    n_val = n_validated(len(val_lengths), train, validation)
    n_tokens, n_steps = _total(whole, order), -(-n_samples // train.batch_size)
    n_validations, n_saves = _pauses(n_steps, train.save_interval, validation.eval_interval)
    return Work(
        n_rows=len(lengths),
        n_samples=n_samples,
        n_steps=n_steps,
        n_tokens=n_tokens,
        n_computed=n_tokens if left == 1 else round(left * n_tokens),
        n_targets=_total(targets, order),
        squares=float(left_of_squares * _total(np.square(lengths), order)),
        n_passes=_scaled(len(passes), n_samples, len(first)),
        n_padded=_padded(whole, order, train.micro_batch_size),
        room=packing.max_tokens,
        largest=max(*computed, n_computed(lengths, first_tried)),
        most_targets=int(max(targets[g].sum() for g in [*(group for group, _ in passes), first_tried])),
        n_val_tokens=int(val_whole[:n_val].sum()),
        n_val_computed=round(left * val_whole[:n_val].sum()),
        n_val_targets=int(val_targets[:n_val].sum()),
        val_squares=float(left_of_squares * np.square(val_lengths[:n_val], dtype=np.float64).sum()),
        n_validations=n_validations,
        n_saves=n_saves,
    )


def _scaled(counted: int, n_samples: int, n_counted: int) -> int:
    """Returns the number for all samples of what was counted for the first of them."""
    return round(counted * n_samples / n_counted)


def _total(values: np.ndarray, order: Order) -> int:
    """Returns the sum of a value of each row, (n_rows,), over all samples of a run."""
    epochs, rest = divmod(order.n_samples, order.n_rows)
    return epochs * int(values.sum()) + int(values[order.permutation(epochs)[:rest]].sum() if rest else 0)


def _padded(lengths: np.ndarray, order: Order, size: int) -> int:
    """Returns the tokens of a run in micro-batches of `size` samples, each padded to its longest."""
    most = min(_LISTED_SAMPLES, _LISTED_EPOCHS * order.n_rows)
    listed = lengths[order.indices(0, most - most % min(size, most))]
    size, n = min(size, len(listed)), len(listed)
    padded = np.pad(listed, (0, -n % size)).reshape(-1, size).max(1) * size
    found = int(padded.sum()) - int(padded[-1]) // size * (-n % size)
    return found if n == order.n_samples else _scaled(found, order.n_samples, n)


def _pauses(n_steps: int, save_interval: int, eval_interval: int) -> tuple[int, int]:
    """Returns the numbers of validations and of saves; either is due at the start, at its interval and at the end."""

    def multiples(interval: int) -> int:
        return n_steps // interval + 1

    def ends_between(*intervals: int) -> bool:
        return all(n_steps % interval for interval in intervals)

    n_saves = multiples(save_interval) + multiples(eval_interval) - multiples(lcm(save_interval, eval_interval))
    n_validations = multiples(eval_interval) + ends_between(eval_interval)
    return n_validations, n_saves + ends_between(save_interval, eval_interval)


def targets_by_sample(samples: Samples) -> np.ndarray:
    """Returns the number of target tokens of each sample, (n,); a first token never is one."""
    offsets = np.asarray(samples.offsets)
    found = np.zeros(len(samples), dtype=np.int64)
    first = 0
    while first < len(samples):  # a part at a time: the labels stay on the disk
        last = max(first + 1, int(offsets.searchsorted(offsets[first] + COUNTED, side="right")) - 1)
        is_target = np.asarray(samples.labels[offsets[first] : offsets[last]]) != IGNORE
        inside = offsets[first : last + 1] - offsets[first]
        is_target[inside[:-1][np.diff(inside) > 0]] = False
        before = np.zeros(len(is_target) + 1, np.int32)
        np.cumsum(is_target, out=before[1:])
        found[first:last] = np.diff(before[inside])
        first = last
    return found
