"""The figures that count, each beside what it is to reach."""

import operator
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A row of the table at the end."""

    job: str
    key: str
    """Of the figure."""
    goal: float
    unit: str = ""
    at_most: bool = False
    """The figure is to stay below the goal, not above it."""
    over: str | None = None
    """Key of a figure to divide by."""

    def row(self, figures: dict[str, float]) -> str:
        found = figures.get(self.key)
        if found is not None and self.over is not None:
            found = found / figures[self.over] if self.over in figures else None
        goal = f"{'<=' if self.at_most else '>='} {self.goal:,g} {self.unit}"
        if found is None or found != found:
            return f"  {self.job:66}{'-':>12}   {goal:18}not measured"
        met = (operator.le if self.at_most else operator.ge)(found, self.goal)
        return f"  {self.job:66}{found:12,.4g}   {goal:18}{'reached' if met else 'MISSED'}"


TARGETS = (
    Target("sets of LoRA's layers whose loss or gradients are wrong", "wrong_paths", 0, at_most=True),
    Target("LoRA bf16 r 8 q,v, packed 2,048", "bf16.qv.full.1.tokens_per_sec", 20_000, "tok/s"),
    Target("  of the measured rate of matrix products", "bf16.qv.full.1.of_rate", 0.72),
    Target("  micro-batches of 8,192", "bf16.qv.full.2.tokens_per_sec", 20_000, "tok/s"),
    Target("  instructions, prefixes shared", "bf16_sharing.qv.styled.1.tokens_per_sec", 24_000, "tok/s"),
    Target("LoRA bf16 r 16 all linear, packed 2,048", "bf16.all.full.1.tokens_per_sec", 17_000, "tok/s"),
    Target("  of the measured rate of matrix products", "bf16.all.full.1.of_rate", 0.45),
    Target("LoRA fp8 base, packed 4,096", "fp8.qv.long.1.tokens_per_sec", 26_000, "tok/s"),
    Target("  micro-batches of 8,192", "fp8.qv.long.2.tokens_per_sec", 26_000, "tok/s"),
    Target("QLoRA nf4, packed 2,048", "bnb.nf4.qv.full.1.tokens_per_sec", 17_500, "tok/s"),
    Target(
        "  peak memory, 2,048 tokens, recomputing", "bnb.nf4_called.qv.full.0.5.lean.peak_gb", 8, "GB", at_most=True
    ),
    Target("peak memory, micro-batch of 4,096, bf16", "bf16_called.qv.full.1.peak_gb", 26, "GB", at_most=True),
    Target("peak memory, micro-batch of 4,096, nf4", "bnb.nf4_called.qv.full.1.peak_gb", 16.5, "GB", at_most=True),
    Target("times litgpt's recipe, micro-batch 4 padded, instructions", "litgpt.instructions.ours", 6),
    Target("times transformers + peft, padded by 4, instructions", "hf_padded_by_4.instructions.ours", 2),
    Target("times transformers + peft, packed, instructions", "hf_packed.instructions.ours", 1.3),
    Target("times transformers + peft, packed 2,048", "hf_packed.full.ours", 1.3),
    Target("decode bf16, batch 1, of the bandwidth's limit", "decode.bf16.of_limit", 0.75),
    Target(
        "decode nf4 / bf16",
        "decode.bnb.nf4.tokens_per_sec",
        1,
        over="decode.bf16.tokens_per_sec",
    ),
    Target("engine, 64 rows, fp8", "engine.fp8.rows.tokens_per_sec", 3_466, "tok/s"),
    Target("engine, one text, fp8, every guess right", "engine.fp8.guessed.tokens_per_sec", 356, "tok/s"),
)


def table(figures: dict[str, float]) -> str:
    return "\n".join(target.row(figures) for target in TARGETS)
