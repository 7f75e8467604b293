"""How long a step takes for rows that begin alike, whose common keys and values are read once, and each for itself.

python benchmarks/alike.py --checkpoint_dir checkpoints/HuggingFaceTB/SmolLM2-135M-Instruct

The rows have the same tokens first, as after a long system prompt or solved examples, and then tokens of their own. One
engine draws greedily after them, in turn with the common part read once for all rows and with each row reading its own
copy, which is what it does for rows that share nothing. Only steps in which every row draws a token are timed; prompts
are read before. Ratios are within a round, since the machine's speed changes.
"""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lit_gpt.args import Precision
from lit_gpt.checkpoints.base import load_base
from lit_gpt.cli import run
from lit_gpt.fabric import make_fabric
from lit_gpt.generation.batching.alike import Alike
from lit_gpt.generation.batching.rows import Row
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import GREEDY, Delta, Request
from lit_gpt.tokenizer import Tokenizer


class _Apart(Alike):
    """Says that no rows share anything."""

    def of(self, rows: Sequence[Row]) -> dict[int, Any]:
        return {}


def main(
    checkpoint_dir: Path,
    rows: int = 8,
    common: int = 1000,
    own: int = 100,
    steps: int = 48,
    rounds: int = 5,
    precision: Precision = "bf16-true",
) -> None:
    """Prints the milliseconds of a step in both ways, and their ratio.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        rows: texts that are written at once.
        common: tokens with which all of them begin.
        own: tokens of each after those.
        steps: steps that are timed in a round.
        rounds: rounds; in each, both ways take their turn.
        precision: of the weights.
    """
    model, _ = load_base(make_fabric(precision, 1), checkpoint_dir, None)
    room = 2 * rows * (common + own + steps + 2)  # with what is kept of the round before
    engine = Engine(model, Tokenizer(checkpoint_dir), max_rows=rows, max_tokens=room)
    print(_head(checkpoint_dir, precision))
    print(f"{rows} rows with {common:,} tokens in common and {own:,} of their own; {steps} steps a round")
    ways: dict[str, Alike] = {"each by itself": _Apart(), "read once": Alike()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[list[int]]] = {}
    for i in range(-1, rounds):  # the first one warms up
        for name, way in ways.items():
            engine.passes.alike = way
            ms, texts[name] = _timed(
                engine, _prompts(rows, common, own, n_vocab=model.config.vocab_size, seed=i), steps
            )
            found[name] += [ms] if i >= 0 else []
        if i >= 0:
            print(f"  round {i + 1}: " + ", ".join(f"{name} {ms[-1]:.1f} ms" for name, ms in found.items()), flush=True)
    for name, ms in found.items():
        print(f"  {name:15} {statistics.median(ms):6.1f} ms a step ({min(ms):.1f} to {max(ms):.1f})")
    ratios = [a / b for a, b in zip(*found.values(), strict=True)]
    print(f"  ratio of a round: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    same = sum(a == b for a, b in zip(*texts.values(), strict=True))
    print(f"  the same tokens in {same} of {rows} texts of the last round")


def _head(checkpoint_dir: Path, precision: str) -> str:
    """Returns where and with what it is measured."""
    root = Path(__file__).parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return (
        f"{checkpoint_dir.name}, {precision}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"commit {commit.stdout.strip()}; load before: {load}"
    )


def _prompts(rows: int, common: int, own: int, n_vocab: int, seed: int) -> list[list[int]]:
    """Returns prompts that begin alike; those of another seed begin otherwise."""
    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(0, n_vocab, (common + rows * own,), generator=generator).tolist()
    return [ids[:common] + ids[common + i * own : common + (i + 1) * own] for i in range(rows)]


def _timed(engine: Engine, prompts: Sequence[Sequence[int]], steps: int) -> tuple[float, list[list[int]]]:
    """Returns the milliseconds of a step in which all rows draw a token, and what they drew."""
    drawn: list[list[int]] = [[] for _ in prompts]

    def deliver(delta: Delta, ids: list[int]) -> None:
        ids += [token.id for token in delta.tokens]

    for prompt, ids in zip(prompts, drawn, strict=True):
        engine.submit(Request(prompt, steps + 1, GREEDY), lambda delta, ids=ids: deliver(delta, ids))
    while not all(drawn):
        engine.step()
    before = max(map(len, drawn))  # rows that were read first have drawn more
    start = time.perf_counter()
    n = 0
    while all(len(ids) < steps + 1 for ids in drawn):
        engine.step()
        n += 1
    assert n == steps + 1 - before
    ms = 1000 * (time.perf_counter() - start) / n
    while engine.step():
        pass
    return ms, drawn


if __name__ == "__main__":
    run(main)
