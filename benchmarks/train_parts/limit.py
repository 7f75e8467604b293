"""The rate of the matrix products alone, at the model's shapes: what no training step on this machine exceeds."""

import time

import torch
from torch import Tensor
from train_parts.job import Job

from lit_gpt.config import Config
from lit_gpt.layers.cpu_matmul import linear, matmul

ROWS = 512
"""Tokens of a product, as in a micro-batch."""


def limit(job: Job, part_of_targets: float) -> float:
    """Tokens a second if a step were its products: forward and the input's gradient, the head for targets only; in full
    finetuning the gradients of the weights, too.

    Args:
        part_of_targets: targets / tokens.
    """
    c = Config.from_json(job.material.ours / "lit_config.json")
    dtype = {"32-true": torch.float32, "bf16-true": torch.bfloat16}[job.precision]
    gated = 1 if c.mlp == "plain" else 2
    q = c.n_head * c.head_size
    shapes = [(sum(c.qkv_sizes), c.n_embd), (c.n_embd, q), (c.n_embd, c.intermediate_size)]
    shapes += [(c.intermediate_size, c.n_embd)] * gated
    trains = job.targets == "full"
    block = sum(seconds(torch.randn(shape, dtype=dtype), trains) for shape in shapes)
    head = seconds(torch.randn(c.padded_vocab_size, c.n_embd, dtype=dtype), trains)
    return ROWS / (c.n_layer * block + part_of_targets * head)


@torch.no_grad()
def seconds(weight: Tensor, trains: bool) -> float:
    """Of x W^T and dy W for ROWS rows, and of dy^T x if W trains, the best of five."""
    n_out, n_in = weight.shape
    x, dy = (torch.randn(ROWS, n, dtype=weight.dtype) for n in (n_in, n_out))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        linear(x, weight)
        matmul(dy, weight)
        if trains:
            matmul(dy.T, x)
        times.append(time.perf_counter() - start)
    return min(times)
