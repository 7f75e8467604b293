"""Shows how long the samples are: a histogram in the terminal, and a plot."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lit_gpt.files import replace_with

PICTURE = "lengths.png"
"""File name of the plot, in the folder of the data set."""
_N_BARS = 12
"""Number of bars of the histogram, about."""
_WIDTH = 40
"""Length of the longest bar in characters."""


def edges(lengths: np.ndarray) -> np.ndarray:
    """Returns the bin edges, in tokens, of about _N_BARS bars of a round width: 1, 2 or 5 times a power of 10."""
    longest = max(1, int(lengths.max()))
    raw = longest / _N_BARS
    scale = 10 ** int(np.floor(np.log10(max(raw, 1))))
    width = next(w * scale for w in (1, 2, 5, 10) if w * scale >= raw)
    return np.arange(0, longest + width, width)


def histogram(lengths: np.ndarray) -> list[str]:
    """Returns the lines of a histogram of the lengths of a split, (n,)."""
    bounds = edges(lengths)
    counts, _ = np.histogram(lengths, np.append(bounds[:-1], bounds[-1] + 1))
    digits = len(f"{bounds[-1]:,}")
    lines = []
    for low, high, n in zip(bounds[:-1], bounds[1:], counts, strict=True):
        bar = "#" * round(_WIDTH * n / counts.max()) or "." * bool(n)
        lines.append(f"{low:>{digits},} - {high - 1:>{digits},}  {bar:<{_WIDTH}} {n:,}")
    return lines


def draw(splits: Mapping[str, np.ndarray], limit: int | None, path: Path) -> None:
    """Saves a plot of the lengths of each split, with the maximum length of a sample."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    bounds = edges(np.concatenate(list(splits.values())))
    for (name, lengths), color in zip(splits.items(), ("#4477aa", "#cc3311"), strict=False):
        axes.hist(lengths, bins=bounds.tolist(), color=color, alpha=0.8, label=f"{name}: {len(lengths):,} samples")
    if limit is not None and limit <= 2 * bounds[-1]:
        axes.axvline(limit, color="#333333", linestyle="--", linewidth=1, label=f"longest possible: {limit:,}")
    axes.set_xlabel("tokens of a sample")
    axes.set_ylabel("samples")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    replace_with(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    plt.close(figure)
