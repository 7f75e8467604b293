"""Documents to train on, of random tokens: long ones, and ones with the lengths of an instruction data set."""

from collections.abc import Sequence

import numpy as np

IGNORE = -100
Document = tuple[np.ndarray, np.ndarray]
"""ids and labels, (T,) int32 each; a label is IGNORE where nothing is to be learnt."""


def full(n: int, length: int, vocab_size: int, seed: int) -> list[Document]:
    """`n` documents of `length` tokens, all of them targets."""
    rng = np.random.default_rng(seed)
    return [(ids, ids.copy()) for ids in rng.integers(3, vocab_size, (n, length), dtype=np.int32)]


def instructions(n: int, vocab_size: int, seed: int, shortest: int = 36, longest: int = 512) -> list[Document]:
    """`n` documents as Alpaca's prompts with their answers: lengths lognormal with mean 110, the last 38 % targets.

    Alpaca-Libre with SmolLM2's tokenizer has mean 96, median 85, a standard deviation of 0.36 of the length's logarithm
    and 39 % targets; a vocabulary of 32,000 tokens makes its texts longer by about a tenth.
    """
    rng = np.random.default_rng(seed)
    sigma = 0.4
    lengths = rng.lognormal(np.log(110) - sigma**2 / 2, sigma, n).clip(shortest, longest).astype(int)
    return [with_answer(rng.integers(3, vocab_size, length, dtype=np.int32)) for length in lengths]


def styled(n: int, vocab_size: int, seed: int, **lengths: int) -> list[Document]:
    """`instructions`, two of three of which begin as Alpaca's prompts with an input do, the others as those without.

    Those beginnings have 38 and 28 tokens with Mistral's tokenizer; of 300 rows of Alpaca-Libre, 194 have an input.
    """
    rng = np.random.default_rng(seed)
    beginnings = [rng.integers(3, vocab_size, length, dtype=np.int32) for length in (38, 28)]
    documents = instructions(n, vocab_size, seed, **lengths)
    for i, (ids, labels) in enumerate(documents):
        beginning = beginnings[i % 3 == 0][: max(0, (labels == IGNORE).sum() - 1)]
        ids[: len(beginning)] = beginning
    return documents


def with_answer(ids: np.ndarray) -> Document:
    labels = ids.copy()
    labels[: round(0.62 * len(ids))] = IGNORE
    return ids, labels


def n_tokens(documents: Sequence[Document]) -> int:
    return sum(len(ids) for ids, _ in documents)


def n_targets(documents: Sequence[Document]) -> int:
    """Positions that carry loss: those with a label, except a document's first, which nothing predicts."""
    return sum(int((labels[1:] != IGNORE).sum()) for _, labels in documents)
