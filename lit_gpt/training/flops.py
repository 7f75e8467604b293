"""Floating-point operations of training, by arithmetic and by counting."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_gpt.layer_heads import of_layer
from lit_gpt.layers.past import Mixing
from lit_gpt.model import GPT
from lit_gpt.training.memory import lowest_trained


def estimated_flops(model: GPT, batch_size: int, length: int) -> float:
    """Returns the operations of forward and backward over (batch_size, length) tokens, all of them targets."""
    n_tokens = batch_size * length
    return training_flops(model, n_tokens, n_tokens, n_tokens * length)


def training_flops(model: GPT, n_tokens: float, n_targets: float, squares: float, n_recomputed: int = 0) -> float:
    """Returns the operations of forward and backward over documents laid end to end.

    2 a token for each weight of a matmul in the forward pass, and as many for the gradient of its input; the
    gradient of the weight, 2 more, only where it is trained (arXiv:2001.08361, table 1). Attention reads the causal
    half: 2 * T * H * D a layer and token for scores and values together, and twice that in the backward pass. That ends
    at the lowest block where something trains. The state of a layer that is not attention is computed once more there.
    The output projection is computed for targets only.

    Args:
        squares: the sum of the squared lengths of the documents.
        n_recomputed: blocks under activation checkpointing, which run their forward pass twice.
    """
    c = model.config
    lowest = lowest_trained(model)
    below = tuple(f"transformer.h.{i}." for i in range(lowest))
    if not model.transformer.wte.weight.requires_grad:
        below = (*below, "transformer.per_layer.")
    total = 0.0
    for name, rows, trained in _matmuls(model, n_tokens, n_targets):
        total += rows * (6 if trained else 2 if name.startswith(below) else 4)
    for name, module in model.named_modules():
        total += getattr(module, "flops_besides", 0) * _rows_of(model, f"{name}.", n_tokens, n_targets)
    per_block = sum(rows for name, rows, _ in _matmuls(model, n_tokens, n_targets) if ".h." in name) / c.n_layer
    total += 2 * per_block * n_recomputed
    for i, block in enumerate(model.transformer.h):
        n = 1 if i < lowest else 4 if isinstance(block.attn, Mixing) else 3  # as many operations as n forward passes
        total += (n + (i < n_recomputed)) * _between_tokens(model, i, n_tokens, squares)
    return total


def forward_flops(model: GPT, n_tokens: float, n_targets: float, squares: float) -> float:
    """Returns the operations of the forward pass alone; its arguments are those of `training_flops`."""
    others = sum(_between_tokens(model, i, n_tokens, squares) for i in range(model.config.n_layer))
    return sum(2 * rows for _, rows, _ in _matmuls(model, n_tokens, n_targets)) + others


def _between_tokens(model: GPT, layer: int, n_tokens: float, squares: float) -> float:
    """Returns the operations of a layer's scores and of the values that they weigh, or of its state, forward."""
    mixer = model.transformer.h[layer].attn
    if isinstance(mixer, Mixing):
        return n_tokens * mixer.flops(squares / max(n_tokens, 1))
    if mixer is None:
        return 0.0
    return 2 * squares * model.config.n_head * of_layer(model.config, layer).head_size


def _matmuls(model: GPT, n_tokens: float, n_targets: float) -> list[tuple[str, float, bool]]:
    """Returns (name, weights times rows, whether it trains) of each weight matrix."""
    found = []
    for name, p in model.named_parameters():
        # a tied head is listed as lm_head, before wte, and so counts as the matmul that it is
        if p.dim() == 2 and "wte" not in name:
            found.append((name, p.numel() * _rows_of(model, name, n_tokens, n_targets), p.requires_grad))
    return found


def _rows_of(model: GPT, name: str, n_tokens: float, n_targets: float) -> float:
    """Returns the rows that the layer of a parameter multiplies: a token goes through some of the experts."""
    if name.startswith("lm_head."):
        return n_targets
    return n_tokens * (model.config.n_expert_per_token / model.config.n_expert if ".experts." in name else 1.0)


def measured_flops(model: GPT, batch_size: int, length: int) -> float:
    """Returns the operations of `estimated_flops` as torch counts them.

    Args:
        model: a model on the meta device.
    """
    ids = torch.zeros(batch_size, length, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    return counter.get_total_flops()
