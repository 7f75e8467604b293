"""Conversion of a combined QKV weight between the stacked layout of the model and the interleaved one of GPT-NeoX."""

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
