"""The largest singular values of a weight with their vectors, from which PiSSA starts."""

import torch
from torch import Tensor

_OVERSAMPLING, _ITERATIONS = 8, 16
"""Settings of the randomized SVD (https://arxiv.org/abs/0909.4061 algorithm 4.4)."""


def principal(weight: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns U (m, r), S (r,) and V^T (r, n) for the r largest singular values of an (m, n) weight, or for all."""
    if 4 * (r + _OVERSAMPLING) >= min(weight.shape):
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        U, S, V = torch.svd_lowrank(weight, q=r + _OVERSAMPLING, niter=_ITERATIONS)
        Vh = V.T
    return U[:, :r], S[:r], Vh[:r]
