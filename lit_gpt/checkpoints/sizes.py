"""Compares the size of the model that a configuration describes with what its files hold, before it is built.

Even on the meta device, which holds no values, a model of a billion layers takes hours and all memory.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from lit_gpt.config import Config
from lit_gpt.errors import UserError
from lit_gpt.files import Spec
from lit_gpt.layer_heads import of_layer, stacked_sizes

_SLACK = 4
"""Factor by which the files may have fewer parameters than the model; the tensors that are missing are then named."""


def require_weights_for(config: Config, specs: Mapping[str, Spec], path: Path) -> None:
    """Checks that files of weights are not far too small for the model of a configuration.

    Args:
        specs: shape and dtype of each tensor of the files, by any names.
        path: the file or folder of the weights, for the message.

    Raises:
        UserError: the configuration has more layers or experts than the files have tensors, or several times as many
            parameters.
    """
    mlps = [config.mlp_of(i) for i in range(config.n_layer)]
    n_blocks = sum(config.n_expert if kind == "moe" else 1 for kind, _ in mlps)
    if n_blocks > sum(_n_stacked(spec) for spec in specs.values()):
        kind = "layers" if config.n_expert <= 1 else "experts in all layers"
        raise UserError(
            f"{path} has {len(specs):,} tensors, and the configuration says {n_blocks:,} {kind}; they do not belong "
            "together, get both again"
        )
    n_held = sum(math.prod(spec.shape) for spec in specs.values())
    if _least_parameters(config) > _SLACK * n_held:
        raise UserError(
            f"{path} has {n_held:,} parameters, and the configuration at least {_least_parameters(config):,} "
            f"(n_layer={config.n_layer}, n_embd={config.n_embd}, n_head={config.n_head}, head_size={config.head_size}, "
            f"intermediate_size={config.intermediate_size}, padded_vocab_size={config.padded_vocab_size}); they do "
            "not belong together, get both again"
        )


def _n_stacked(spec: Spec) -> int:
    """Returns how many experts' matrices a tensor may stack."""
    return spec.shape[0] if len(spec.shape) == 3 else 1


def _least_parameters(config: Config) -> int:
    """Returns the number of parameters of the matrices of a model."""
    c = config
    total = c.padded_vocab_size * (c.n_embd * (1 if c.tie_embeddings else 2) + c.n_layer * c.per_layer_input_size)
    for i in range(c.n_layer):
        kind, size = c.mlp_of(i)
        read = c.latent_size if kind == "moe" and c.latent_size else c.n_embd
        is_plain = kind == "plain" or (kind == "moe" and c.plain_experts)
        total += read * size * (2 if is_plain else 3) * (c.n_expert if kind == "moe" else 1)
        if c.mixer(i) != "none":
            total += c.n_embd * (sum(stacked_sizes(c, i)) + of_layer(c, i).qkv_sizes[0])
    return total
