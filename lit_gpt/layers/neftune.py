"""NEFTune noise on the embeddings while training (https://arxiv.org/abs/2310.05914, algorithm 1)."""

import torch
from torch import Tensor

from lit_gpt.layers.attention import Documents
from lit_gpt.layers.dropout import hash_of


def noisy(x: Tensor, documents: Documents, alpha: float, seed: Tensor) -> Tensor:
    """Returns embeddings x (1, T, C) plus noise, uniform in +-alpha / sqrt(L C) for a token of a document of L tokens.

    L counts what is computed: the paper's count is by one larger, that of the last token, which predicts nothing.

    Lengths come from the offsets on the device, so that a replayed CUDA graph uses those of the current batch.

    Args:
        seed: (1,) int64 on x's device; the noise is a function of it, of the token's key, and of the channel.
    """
    T, C = x.shape[1:]
    token = torch.arange(T, device=x.device)
    document = torch.searchsorted(documents.offsets[1:].long(), token, right=True)
    length = documents.offsets.diff()[document]  # (T,)
    magnitude = alpha * (length * C).float().rsqrt()
    noise = hash_of(x[0], seed, documents.keys).float().mul_(2.0**-31) * magnitude[:, None]
    return x + noise.to(x.dtype)
