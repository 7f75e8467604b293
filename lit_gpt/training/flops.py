"""Floating-point operations of a training iteration, by arithmetic and by counting."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_gpt.model import GPT


def estimated_flops(model: GPT, batch_size: int, length: int) -> float:
    """Operations of forward and backward over (batch_size, length) tokens, all of them targets.

    2 a token for each weight of a matrix product in the forward pass, and as many for the gradient of its input; the
    gradient of the weight, 2 more, only where it is trained (arXiv:2001.08361, table 1). Attention reads the causal
    half: 2 * T * H * D a layer and token for scores and values together, and twice that in the backward pass. That ends
    at the lowest block where something trains.
    """
    c = model.config
    active = c.n_expert_per_token / c.n_expert if c.n_expert else 1.0  # a token goes through some of the experts
    trains = [any(p.requires_grad for p in block.parameters()) for block in model.transformer.h]
    lowest = trains.index(True) if True in trains else c.n_layer
    lowest = 0 if model.transformer.wte.weight.requires_grad else lowest
    below = tuple(f"transformer.h.{i}." for i in range(lowest))
    forward = frozen = trained = 0.0
    for name, p in model.named_parameters():
        # a tied head is listed as lm_head, before wte, and so counts as the matrix product that it is
        if p.dim() != 2 or "wte" in name:
            continue
        n = p.numel() * (active if ".experts." in name else 1.0)
        if name.startswith(below):
            forward += n
        elif p.requires_grad:
            trained += n
        else:
            frozen += n
    attention = 2 * length * c.n_head * c.head_size
    passes = lowest + 3 * (c.n_layer - lowest)
    return batch_size * length * (2 * forward + 4 * frozen + 6 * trained + passes * attention)


def measured_flops(model: GPT, batch_size: int, length: int) -> float:
    """The same, counted by torch while a copy of the model without memory (on the meta device) does it.

    Args:
        model: on the meta device.
    """
    ids = torch.zeros(batch_size, length, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    return counter.get_total_flops()
