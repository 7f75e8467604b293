"""What a pass takes along from layer to layer besides the hidden states: inputs of each layer, keys and values.

Letters: B batch, T tokens, C n_embd, L layers, P per_layer_input_size, G key/value heads, S positions, D head_size.
"""

from torch import Tensor, nn

from lit_gpt.config import Config
from lit_gpt.layers.linear import Embedding, Linear
from lit_gpt.layers.mlp import ACTIVATIONS
from lit_gpt.layers.norms import make_norm


class Carried:
    """What one pass takes along, made anew for each; no dataclass, of which fsdp hands each block a copy.

    Args:
        inputs: what each layer reads of the tokens, (B, T, L, P).
    """

    def __init__(self, inputs: Tensor | None = None) -> None:
        self.inputs = inputs
        self.kv: dict[int, tuple[Tensor, Tensor]] = {}
        """Layer -> its keys and values, (B, G, S, D), for later ones that have none."""


class PerLayerInputs(nn.Module):
    """Makes the inputs of all layers, of a table of the tokens and of their embeddings."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, n = config, config.n_layer * config.per_layer_input_size
        self.wte = Embedding(config.padded_vocab_size, n)
        self.proj = Linear(config.n_embd, n, bias=False)
        self.norm = make_norm(config, n=config.per_layer_input_size)

    def forward(self, idx: Tensor, x: Tensor) -> Tensor:
        """Returns the inputs of all layers, (..., L, P), for token ids (...) and their embeddings x (..., C)."""
        P = self.config.per_layer_input_size
        of_tokens = self.wte(idx)
        of_tokens = of_tokens * of_tokens.new_full((), P**0.5)  # the factor is rounded to their dtype
        projected = self.proj(x) * self.config.n_embd**-0.5
        return (self.norm(projected.unflatten(-1, (-1, P))) + of_tokens.unflatten(-1, (-1, P))) * 2**-0.5


class PerLayerInput(nn.Module):
    """Adds to the output of a layer what it makes of its own input, through a gate."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = Linear(config.n_embd, config.per_layer_input_size, bias=False)
        self.proj = Linear(config.per_layer_input_size, config.n_embd, bias=False)
        self.norm = make_norm(config)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, own: Tensor) -> Tensor:
        """Returns x (B, T, C) with what is added for the layer's own input, (B, T, P)."""
        return x + self.norm(self.proj(self.activation(self.gate_proj(x)) * own))
