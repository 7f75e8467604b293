"""The pairs, or the prompts of GRPO, that both peers learn from: the demo's orders; and the model in both formats."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from train_parts.material import ROOT, Material

PROMPT = "Below is an instruction.\n\n### Instruction:\nWrite each order as a JSON record.\n\n{}\n\n### Response:\n"
STEP, BETA, RATE, SEED = 8, 0.1, 1e-4, 1337
"""Pairs of an optimizer step, beta, learning rate, seed."""
RANK, ALPHA = 8, 16
PROMPTS, GROUP, NEW_TOKENS = 2, 8, 32
"""Of GRPO: prompts of a step, answers to each, tokens of an answer."""


@dataclass(frozen=True)
class Pairs:
    """Pairs under a work folder."""

    folder: Path
    orders: int
    n: int
    trl_batch: int

    @property
    def model(self) -> Material:
        return Material(self.folder)

    @property
    def path(self) -> Path:
        return self.folder / f"pairs-{self.orders}.json"

    def make(self) -> None:
        """Make the model where it is not there yet, and the pairs anew."""
        self.model.make_model()
        rows = json.loads((ROOT / "demo/train.json").read_text(encoding="utf-8"))
        pairs = []
        for i in range(self.n):
            part = [rows[(i * self.orders + k) % len(rows)] for k in range(self.orders)]
            other = rows[(i * self.orders + 7) % len(rows)]
            good = [row["output"] for row in part]
            bad = [*good[:-1], json.dumps({**json.loads(good[-1]), "name": json.loads(other["output"])["name"] + "a"})]
            prompt = PROMPT.format("\n".join(row["input"] for row in part))
            pairs.append({"prompt": prompt, "chosen": "\n".join(good), "rejected": "\n".join(bad)})
        self.path.write_text(json.dumps(pairs), encoding="utf-8")

    def tokens(self) -> list[tuple[list[int], list[int], list[int]]]:
        """Prompt, preferred and other answer of each pair as ids, the answers with their end."""
        from lit_gpt.tokenizer import Tokenizer

        tokenizer = Tokenizer(self.model.ours)
        found = []
        for row in json.loads(self.path.read_text(encoding="utf-8")):
            answers = [[*tokenizer.encode(row[k], bos=False), tokenizer.eos_id] for k in ("chosen", "rejected")]
            found.append((tokenizer.encode(row["prompt"]), *answers))
        return found

    def described(self) -> str:
        """How long prompts and answers are."""
        prompts, good, bad = (np.array([len(row[k]) for row in self.tokens()]) for k in range(3))
        means = f"prompts of {prompts.mean():.0f} tokens, answers of {good.mean():.0f} and {bad.mean():.0f}"
        return f"{self.n} pairs, steps of {STEP}: {means}; LoRA r {RANK} on q, k, v and o, fp32"

    def described_groups(self) -> str:
        """How long prompts and answers of GRPO are."""
        mean = np.array([len(prompt) for prompt, _, _ in self.tokens()]).mean()
        return (
            f"steps of {PROMPTS} prompts of {mean:.0f} tokens with {GROUP} answers of {NEW_TOKENS} tokens each; "
            f"LoRA r {RANK} on q, k, v and o, fp32"
        )


def score(text: str) -> float:
    """The checker of GRPO: the share of digits, so that no two answers of a group are likely to be equal."""
    return sum(c.isdigit() for c in text) / max(1, len(text))
