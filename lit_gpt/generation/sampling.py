"""Samples tokens from logits without making the host wait for the GPU."""

import torch
from torch import Tensor


def sample(logits: Tensor, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """Samples one token id per row, (B,), from logits (B, V).

    Args:
        logits: logits of the next token.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample from the k most likely tokens only; None from all.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is None or top_k >= logits.size(-1):
        return _sample_index(logits.softmax(-1))
    values, ids = logits.topk(top_k)
    return ids.gather(-1, _sample_index(values.softmax(-1)).unsqueeze(-1)).squeeze(-1)


def _sample_index(probabilities: Tensor) -> Tensor:
    """Samples an index per row, (B,), with `probabilities` (B, n).

    If each index has an exponential waiting time with its probability as rate, the shortest one is at an index with
    that index's probability. `torch.multinomial` does the same, but makes the host wait to check its input.
    """
    return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)
