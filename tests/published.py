"""Published counts of parameters, and those of our models; a shape that several names share is built once."""

import csv
from dataclasses import replace
from pathlib import Path

import torch

from lit_gpt.model import GPT

with open(Path(__file__).with_name("published_counts.csv"), encoding="utf-8") as file:
    PUBLISHED = {row["name"]: row for row in csv.DictReader(file)}
"""The 103 models of Lit-GPT and its counts, with a head of its own for each; LoRA of rank 8."""

_SHAPELESS = {"name": "", "hf_repo": "", "block_size": 64, "rope_base": 10_000.0, "rope_scaling": None,
              "rope_condense_ratio": 1}  # fmt: skip
_counted: dict[str, int] = {}


def n_parameters(config, inject=None, *args):
    """Parameters of a model, or after `inject(model, *args)` those that train."""
    key = repr((replace(config, **_SHAPELESS), inject, args))
    if key not in _counted:
        with torch.device("meta"):
            model = GPT(config)
            if inject is not None:
                inject(model, *args)
        _counted[key] = sum(p.numel() for p in model.parameters() if inject is None or p.requires_grad)
    return _counted[key]
