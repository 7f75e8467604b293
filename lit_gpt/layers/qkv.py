"""Reordering of the rows of a QKV weight: groups of heads (GPT-NeoX), and channels that rotate in pairs (GLM-4)."""

import torch
from torch import Tensor

from lit_gpt.config import Config


def stack_qkv(interleaved: Tensor, config: Config) -> Tensor:
    """Returns the rows as [all q | all k | all v], given groups of [q of the group | k | v], as in GPT-NeoX.

    Args:
        interleaved: (n_query_groups * (q_per_kv + 2) * head_size, ...), weight or bias.
    """
    q_per_kv, rest = config.n_head // config.n_query_groups, interleaved.shape[1:]
    groups = interleaved.reshape(config.n_query_groups, q_per_kv + 2, config.head_size, *rest)
    return torch.cat([x.reshape(-1, *rest) for x in groups.split((q_per_kv, 1, 1), dim=1)])


def interleave_qkv(stacked: Tensor, config: Config) -> Tensor:
    """Returns the rows as groups of [q of the group | k | v]: the inverse of `stack_qkv`."""
    rest = stacked.shape[1:]
    parts = [x.reshape(config.n_query_groups, -1, config.head_size, *rest) for x in stacked.split(config.qkv_sizes)]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def halves_of_pairs(x: Tensor, config: Config) -> Tensor:
    """Returns the rows of queries or keys (heads * D, ...), whose rotated channels 2i, 2i + 1 are a pair, reordered.

    In the result, channels i and i + n / 2 of each head's first n are that pair, as `apply_rope` has it.
    """
    n = config.rope_n_elem
    heads = x.unflatten(0, (-1, config.head_size))
    return torch.cat((heads[:, 0:n:2], heads[:, 1:n:2], heads[:, n:]), 1).flatten(0, 1)


def pairs_of_halves(x: Tensor, config: Config) -> Tensor:
    """Returns the rows in the order before `halves_of_pairs`."""
    n = config.rope_n_elem
    heads = x.unflatten(0, (-1, config.head_size))
    paired = heads[:, :n].unflatten(1, (2, n // 2)).transpose(1, 2).flatten(1, 2)
    return torch.cat((paired, heads[:, n:]), 1).flatten(0, 1)
