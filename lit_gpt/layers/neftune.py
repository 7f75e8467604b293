"""NEFTune: noise on the embeddings while training (https://arxiv.org/abs/2310.05914, algorithm 1)."""

import torch
from torch import Tensor

from lit_gpt.layers.attention import Documents


def noisy(x: Tensor, documents: Documents, alpha: float) -> Tensor:
    """Embeddings x (1, T, C) with noise, uniform between +- alpha / sqrt(L C), L the tokens of the document it is in.

    Lengths are read from the offsets on the device: a recording of the step has those of the day it is replayed.
    """
    T, C = x.shape[1:]
    token = torch.arange(T, device=x.device)
    document = torch.searchsorted(documents.offsets[1:].long(), token, right=True)
    length = documents.offsets.diff()[document]  # (T,)
    magnitude = alpha * (length * C).float().rsqrt()
    noise = torch.rand(x.shape, device=x.device, dtype=torch.float32).mul_(2).sub_(1) * magnitude[:, None]
    return x + noise.to(x.dtype)
