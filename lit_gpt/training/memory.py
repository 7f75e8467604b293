"""What the forward pass keeps for the backward pass, and which blocks had better compute it again."""

import torch

from lit_gpt.args import TrainArgs
from lit_gpt.config import Config
from lit_gpt.model import GPT

WORKSPACE = 2 * 1024**3
"""Bytes left for what lives shortly: a block's gradients, logits of the head, the optimizer's step, fragmentation."""


def kept_values(config: Config) -> int:
    """Values that one block keeps for each token while its weights are frozen.

    Both residuals, rotated queries, keys and values, what attention returns, and what the MLP's activation reads. A
    norm of queries and keys keeps what it reads, norms after keep what they read; a mixture of experts keeps the rows
    that it hands out and takes back, too.
    """
    c = config
    q, k, v = c.qkv_sizes
    values = q + k + v + q
    values += (q + k + v) * (c.qk_norm != "none") + 2 * c.n_embd * c.post_norm
    values += c.n_embd * (1 if c.parallel_residual else 2)
    per_mlp = c.intermediate_size * (1 if c.mlp == "plain" else 2)
    return values + (c.n_expert_per_token * (per_mlp + c.intermediate_size + 3 * c.n_embd) if c.n_expert else per_mlp)


def blocks_to_recompute(model: GPT, train: TrainArgs, n_tokens: int, device: torch.device) -> int:
    """How many blocks compute their forward pass twice, by `train.recompute`.

    Args:
        n_tokens: of a forward pass.
        device: whose free memory decides if that is `auto`; a CPU has enough.
    """
    n_layer = model.config.n_layer
    if train.recompute != "auto":
        return n_layer if train.recompute == "all" else 0
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) - WORKSPACE
    size = torch.finfo(model.transformer.wte.weight.dtype).bits // 8 * n_tokens
    kept, input_ = kept_values(model.config) * size, model.config.n_embd * size
    missing = n_layer * kept - free
    if missing <= 0:
        return 0
    return min(
        n_layer, int(-(-missing // max(1, kept - input_))) + 1
    )  # one is there in full while it is computed again
