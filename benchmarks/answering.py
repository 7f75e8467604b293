"""The engine's throughput with a checkpoint, and ten thousand requests with random cancels on a tiny model.

python benchmarks/answering.py --checkpoint_dir checkpoints/HuggingFaceTB/SmolLM2-135M-Instruct
python benchmarks/answering.py --checkpoint_dir ... --requests 10000

Time is that of the process on its cores, so that other programs on the machine do not change it.
"""

import random
import time
from pathlib import Path
from typing import Any

import torch

from lit_gpt.checkpoints.base import load_base
from lit_gpt.cli import run
from lit_gpt.config import Config
from lit_gpt.fabric import make_fabric
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import GREEDY, Request
from lit_gpt.model import GPT
from lit_gpt.resources import peak_memory_gb
from lit_gpt.tokenizer import Tokenizer

TINY: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 64}
TINY |= {"padding_multiple": 8, "block_size": 64}


def main(checkpoint_dir: Path, requests: int = 0, new_tokens: int = 32, prompt_tokens: int = 64) -> None:
    """Prints tokens per second of the process's time for different numbers of rows.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        requests: number of requests with random cancels on a tiny model, instead of the checkpoint's.
        new_tokens: tokens that each request generates.
        prompt_tokens: tokens of each prompt.
    """
    tokenizer = Tokenizer(checkpoint_dir)
    if requests:
        _churn(tokenizer, requests)
        return
    model, _ = load_base(make_fabric(None, 1), checkpoint_dir, None)
    rng = random.Random(0)
    ids = [[rng.randrange(model.config.vocab_size) for _ in range(prompt_tokens)] for _ in range(16)]
    for rows in (1, 4, 16):
        asked = [Request(x, new_tokens, GREEDY) for x in ids[: max(2, rows)]]
        _timed(f"{rows} at once", Engine(model, tokenizer, max_rows=rows, max_tokens=4096), asked)
    shared = [Request([*ids[0], *ids[1], *x[:8]], 0, prompt_logprobs=0, prompt_logprobs_from=130) for x in ids]
    _timed("scored, one beginning", Engine(model, tokenizer, max_rows=16, max_tokens=8192), shared)


def _timed(name: str, engine: Engine, asked: list[Request]) -> None:
    start = time.process_time()
    engine.complete(asked)
    stats, seconds = engine.stats(), time.process_time() - start
    print(f"{name}: {stats.tokens_generated / seconds:.1f} tokens/s, {len(asked) / seconds:.2f} requests/s", stats)


def _churn(tokenizer: Tokenizer, n: int) -> None:
    rng, ends, engine = random.Random(0), [], Engine(GPT(Config(**TINY)), tokenizer, max_rows=32, max_tokens=2048)
    start, first_peak = time.process_time(), 0.0
    for i in range(n):
        ids = [rng.randrange(64) for _ in range(rng.randint(1, 30))]
        ticket = engine.submit(Request(ids, rng.randint(0, 20)), lambda delta: ends.append(delta.finish))
        if rng.random() < 0.2:
            engine.cancel(ticket - rng.randint(0, 30))
        engine.step()
        if i == n // 10:
            first_peak = peak_memory_gb()
    while engine.step():
        pass
    finished = [end for end in ends if end]
    print(f"{len(finished)} of {n} requests ended, {finished.count('cancelled')} of them cancelled")
    print(f"{n / (time.process_time() - start):.0f} requests/s, {engine.stats()}")
    print(f"peak memory: {first_peak:.3f} GB after a tenth, {peak_memory_gb():.3f} GB at the end")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main)
