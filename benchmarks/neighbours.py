"""How far a request's answer depends on the requests that are answered beside it, by precision.

python benchmarks/neighbours.py --checkpoint_dir checkpoints/HuggingFaceTB/SmolLM2-135M-Instruct

Each text is written and scored twice: alone, and among others that come and go. In fp32 the tokens have to be the same:
the program exits with 1 if they are not. In 16 bits, sums are rounded otherwise in a batch of another shape, so that a
token whose lead over the second one is small may be another. Then the rest of the text differs.
"""

import platform
import random
import sys
from pathlib import Path
from typing import Any

import torch

from lit_gpt.checkpoints.base import load_base
from lit_gpt.cli import run
from lit_gpt.fabric import make_fabric
from lit_gpt.generation.answers import Answer
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import GREEDY, Request
from lit_gpt.tokenizer import Tokenizer

_WAYS: list[tuple[str, Any, bool]] = [
    ("32-true", "32-true", True),
    ("bf16-true, packed on a CPU", "bf16-true", True),
    ("bf16-true", "bf16-true", False),
]
"""Name, precision, and whether weights are packed where they can be."""


def main(checkpoint_dir: Path, texts: int = 24, new_tokens: int = 48) -> None:
    """Prints, for each precision, how many texts and log-probabilities change, and by how much.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        texts: number of texts.
        new_tokens: tokens that are written after each.
    """
    tokenizer = Tokenizer(checkpoint_dir)
    prompts = _prompts(tokenizer, texts)
    print(f"Python {platform.python_version()}, torch {torch.__version__}; {texts} texts, {new_tokens} tokens each")
    wrong = False
    for name, precision, pack in _WAYS:
        model, _ = load_base(make_fabric(precision, 1), checkpoint_dir, None)
        requests = [Request(p, new_tokens, GREEDY, logprobs=2, prompt_logprobs=0) for p in prompts]

        def answers(rows: int, chunk: int, model=model, pack=pack, requests=requests) -> list[Answer]:
            engine = Engine(model, tokenizer, max_rows=rows, max_tokens=8192, prefill_chunk=chunk, pack=pack)
            return engine.complete(requests)

        n_changed = _report(name, answers(1, 512), answers(7, 96))
        wrong = wrong or (precision == "32-true" and n_changed > 0)
    sys.exit(int(wrong))


def _prompts(tokenizer: Tokenizer, n: int) -> list[list[int]]:
    """Returns prompts of different lengths, all from one text that every installation has."""
    words = Path(random.__file__).read_text(encoding="utf-8").split()
    rng = random.Random(0)
    starts = [(rng.randrange(len(words) - 400), rng.randint(5, 150)) for _ in range(n)]
    return [tokenizer.encode(" ".join(words[start : start + length])) for start, length in starts]


def _report(name: str, alone: list[Answer], together: list[Answer]) -> int:
    """Prints what differs between answers to the same requests, and returns how many texts do."""
    changed, leads = 0, [0.0]
    found = (_scores(alone) - _scores(together)).abs()
    for a, b in zip(alone, together, strict=True):
        for x, y in zip(a.tokens, b.tokens, strict=True):
            if x.id != y.id:
                changed += 1
                leads.append(x.top[0][1] - x.top[1][1])
                break
    print(
        f"{name}: {changed} of {len(alone)} texts differ, at tokens that led by {max(leads):.3f} nats at most; "
        f"log-probabilities of prompts differ by {found.median():.1e} (median), {found.max():.1e} (largest)"
    )
    return changed


def _scores(answers: list[Answer]) -> torch.Tensor:
    """Returns the log-probabilities of the tokens of all prompts."""
    return torch.tensor([token.logprob for answer in answers for token in answer.prompt[1:]])


if __name__ == "__main__":
    run(main)
