"""What PEFT takes off a layer's weight when a training begins, where the weight itself tells what that was.

An adapter that was saved as it is says so by init_lora_weights, and PEFT changes the weights again when it loads it.
"""

import torch
from torch import Tensor

from lit_gpt.convert.names import EMBEDDINGS, HEAD, hf_sources
from lit_gpt.convert.peft.parameters import Adapter
from lit_gpt.convert.peft.pieces import Base
from lit_gpt.convert.peft.settings import Scaling

STARTS = ("pissa", "olora")


def follow_tied_start(base: Base, adapter: Adapter, scaling: Scaling, start: str) -> None:
    """Give head and embeddings that are one tensor the rest that PEFT leaves of it where the head is adapted.

    PEFT takes the start off in place, so that tied embeddings lose it, too (seen with 0.21), and no update of theirs
    makes up for it.
    """
    head, embeddings = (hf_sources(name, base.config)[1][0] for name in (HEAD, EMBEDDINGS))
    module = head.removesuffix(".weight")
    if not base.config.tie_embeddings or module not in adapter.updates:
        return
    if head not in adapter.whole:
        scale, weight = scaling.scale(adapter.raw[module]), base.known(head).float()
        A0, B0 = _first(weight, start, len(adapter.updates[module]["A"]), scale)
        adapter.whole[head] = weight - scale * (B0 @ A0)
    adapter.whole.setdefault(embeddings, adapter.whole[head])


def take_off_starts(base: Base, adapter: Adapter, scaling: Scaling, start: str) -> None:
    """Make the updates, in place, ones of the base as it is: W - s B0 A0 + s B A = W + s [B, -B0] [A; A0].

    Args:
        start: one of STARTS.
    """
    for module, weights in adapter.updates.items():
        r = len(weights["A"])
        A0, B0 = _first(base.known(f"{module}.weight").float(), start, r, scaling.scale(adapter.raw[module]))
        weights |= {"A": torch.cat((weights["A"], A0)), "B": torch.cat((weights["B"], -B0), 1)}


def _first(weight: Tensor, start: str, r: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A (r, in_features) and B (out_features, r) with which an update begins."""
    if start == "olora":  # https://arxiv.org/abs/2406.01775
        Q, R = torch.linalg.qr(weight)
        return R[:r], Q[:, :r]
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)  # https://arxiv.org/abs/2404.02948
    root = (S[:r] / scale).sqrt()
    return root.unsqueeze(1) * Vh[:r], U[:, :r] * root
