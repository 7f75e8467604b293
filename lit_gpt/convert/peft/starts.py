"""Recomputes the start that PEFT subtracts from a layer's weight before training with PiSSA or OLoRA.

The start follows from the weight. An adapter that was saved unconverted states it in init_lora_weights, and PEFT
subtracts the start again when it loads the adapter.
"""

import torch
from torch import Tensor

from lit_gpt.convert.names import EMBEDDINGS, HEAD, hf_sources
from lit_gpt.convert.peft.parameters import Adapter
from lit_gpt.convert.peft.pieces import Base
from lit_gpt.convert.peft.settings import Scaling

STARTS = ("pissa", "olora")


def follow_tied_start(base: Base, adapter: Adapter, scaling: Scaling, start: str) -> None:
    """Subtracts the start of an adapted head from the tied embeddings, too, as PEFT does.

    PEFT subtracts the start in place, so that tied embeddings lose it, too (seen with 0.21), and they have no update
    that would make up for it.
    """
    head, embeddings = (hf_sources(name, base.config)[1][0] for name in (HEAD, EMBEDDINGS))
    module = head.removesuffix(".weight")
    if not base.config.tie_embeddings or module not in adapter.updates:
        return
    if head not in adapter.whole:
        scale, weight = scaling.scale(adapter.raw[module]), base.known(head).float()
        A0, B0 = _initial_factors(weight, start, len(adapter.updates[module]["A"]), scale)
        adapter.whole[head] = weight - scale * (B0 @ A0)
    adapter.whole.setdefault(embeddings, adapter.whole[head])


def take_off_starts(base: Base, adapter: Adapter, scaling: Scaling, start: str) -> None:
    """Turns the updates, in place, into updates of the unchanged base: W - s B0 A0 + s B A = W + s [B, -B0] [A; A0].

    Args:
        start: one of STARTS.
    """
    for module, weights in adapter.updates.items():
        r = len(weights["A"])
        A0, B0 = _initial_factors(base.known(f"{module}.weight").float(), start, r, scaling.scale(adapter.raw[module]))
        weights |= {"A": torch.cat((weights["A"], A0)), "B": torch.cat((weights["B"], -B0), 1)}


def _initial_factors(weight: Tensor, start: str, r: int, scale: float) -> tuple[Tensor, Tensor]:
    """Returns the initial A (r, in_features) and B (out_features, r) of an update."""
    if start == "olora":  # https://arxiv.org/abs/2406.01775
        Q, R = torch.linalg.qr(weight)
        return R[:r], Q[:, :r]
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)  # https://arxiv.org/abs/2404.02948
    root = (S[:r] / scale).sqrt()
    return root.unsqueeze(1) * Vh[:r], U[:, :r] * root
