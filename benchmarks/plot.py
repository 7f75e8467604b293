"""Tokens a second by who trains, drawn from what benchmarks/gpu.py printed.

python benchmarks/plot.py [--figures benchmarks/results/gpu.txt] [--picture benchmarks/results/gpu.png]
"""

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BARS = (  # label, key of the figure, whether it is ours
    ("litgpt 0.5.13, its recipe", "litgpt.instructions.tokens_per_sec", False),
    ("transformers + peft, padded", "hf_padded_by_4.instructions.tokens_per_sec", False),
    ("transformers + peft, packed", "hf_packed.instructions.tokens_per_sec", False),
    ("ours, bf16, all linear layers (r 16)", "bf16.all.instructions.1.tokens_per_sec", True),
    ("ours, nf4, documents of 2,048", "bnb.nf4.qv.full.1.tokens_per_sec", True),
    ("ours, bf16", "bf16.qv.instructions.1.tokens_per_sec", True),
    ("ours, fp8, documents of 2,048", "fp8.qv.full.1.tokens_per_sec", True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=RESULTS / "gpu.txt")
    parser.add_argument("--picture", type=Path, default=RESULTS / "gpu.png")
    args = parser.parse_args()
    line = next(line for line in args.figures.read_text("utf-8").splitlines() if line.startswith("figures "))
    figures = json.loads(line.removeprefix("figures "))
    draw([(label, figures[key], ours) for label, key, ours in BARS if key in figures], args.picture)


def draw(bars: list[tuple[str, float, bool]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels, rates, ours = zip(*bars, strict=True)
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    drawn = axes.barh(labels, rates, color=["#4477aa" if mine else "#bbbbbb" for mine in ours])
    axes.bar_label(drawn, [f"{rate:,.0f}" for rate in rates], padding=4, fontsize=9)
    axes.set_title("LoRA on Llama-2-7B's shape, short documents, one H100", fontsize=10)
    axes.set_xlabel("real tokens a second")
    axes.set_xlim(0, 1.12 * max(rates))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
