"""The short convolution of LFM2 (arXiv:2511.23404): a layer that mixes a token with the two or three before it.

Letters: B rows, T tokens of each, C n_embd, L tokens that the convolution sees.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.config import Config
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.mixing_kernels import convolved
from lit_gpt.layers.past import Mixing, Past


class CausalConv(nn.Module):
    """A convolution of each channel by itself over the last L tokens, the present one included.

    Args:
        n: channels.
        taps: L.
        silu: whether silu follows.
    """

    def __init__(self, n: int, taps: int, bias: bool, silu: bool = False) -> None:
        super().__init__()
        self.silu = silu
        self.weight = nn.Parameter(torch.empty(n, 1, taps))
        self.bias = nn.Parameter(torch.zeros(n)) if bias else None
        nn.init.uniform_(self.weight, -(taps**-0.5), taps**-0.5)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Returns the convolution (B, T, n) of x (B, T, n) and what came before."""
        lengths = past.whole(x)
        if lengths is not None:
            y = convolved(x, self.weight[:, 0], self.bias, lengths=lengths, silu=self.silu)
            if y is not None:
                return y
        weight = self.weight[:, 0].to(x.dtype)
        taps = past.taps(x, weight.size(1))
        y = taps[0] * weight[:, -1]
        for j, tap in enumerate(taps[1:], 1):
            y = torch.addcmul(y, tap.to(y.dtype), weight[:, -1 - j])
        y = y if self.bias is None else y + self.bias.to(y.dtype)
        return F.silu(y) if self.silu else y


class ShortConv(Mixing):
    """A gated short convolution: proj(c * conv(b * x)), where b, c and x are parts of one product."""

    inputs = ("in_proj",)

    def __init__(self, config: Config, layer: int = 0) -> None:
        super().__init__()
        C = config.n_embd
        self.in_proj = Linear(C, 3 * C, bias=config.conv_bias)
        self.conv = CausalConv(C, config.conv_size, config.conv_bias)
        self.out_proj = Linear(C, C, bias=config.conv_bias)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what is kept of each token, (B, T, C), and what the output is multiplied by, (B, T, C)."""
        b, c, x = self.in_proj(x).chunk(3, -1)
        return b * x, c

    def mixed(self, kept: Tensor, gate: Tensor, past: Past) -> Tensor:
        """Returns the output of the layer, (B, T, C); see `features`."""
        return self.out_proj(gate * self.conv(kept, past))
