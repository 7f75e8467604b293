"""Base class of the quantized linear layers: a frozen weight with fixed dtypes, and matmuls on 2-dimensional input."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_gpt.layers.linear import LinearLayer


class QuantizedLinear(LinearLayer):
    """A `LinearLayer` whose `weight` has the shape and dtype that the subclass stores; nothing in it trains.

    `.to(...)` and the like move it between devices but do not change its dtypes: in another dtype, stored codes and
    their scales would have another meaning.

    Args:
        linear: the layer to replace, on the device where the new layer computes.
    """

    def __init__(self, linear: LinearLayer) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else frozen(linear.bias)

    def matmul_of_rows(self, x: Tensor) -> Tensor:
        """Returns x W^T + bias, (N, out_features) in the dtype of x, for x (N, in_features) with N of at least 1."""
        raise NotImplementedError

    def input_gradient_of_rows(self, dy: Tensor) -> Tensor:
        """Returns dy W, (N, in_features) in the dtype of dy, for dy (N, out_features) with N of at least 1."""
        raise NotImplementedError

    def rows(self, start: int, stop: int) -> Tensor:
        """Returns rows start .. stop of W, (stop - start, in_features) in fp32."""
        raise NotImplementedError

    def dequantize(self) -> Tensor:
        return self.rows(0, self.out_features)

    def forward_no_grad(self, x: Tensor) -> Tensor:
        return _by_rows(self.matmul_of_rows, x, self.out_features)

    def grad_input(self, dy: Tensor) -> Tensor:
        return _by_rows(self.input_gradient_of_rows, dy, self.in_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        def moved(x: Tensor) -> Tensor:
            return x.to(fn(x.new_empty(0)).device) if x.is_floating_point() else fn(x)

        return super()._apply(moved, recurse)


@torch.no_grad()
def _by_rows(f: Callable[[Tensor], Tensor], x: Tensor, n_out: int) -> Tensor:
    """Applies f to all rows of x at once, (..., n) -> (..., n_out); x may have no rows (an expert without tokens)."""
    if x.numel() == 0:
        return x.new_zeros(*x.shape[:-1], n_out)
    return f(x.reshape(-1, x.size(-1))).view(*x.shape[:-1], n_out)


def frozen(x: Tensor) -> nn.Parameter:
    """Returns x as a parameter that does not train."""
    return nn.Parameter(x.detach(), requires_grad=False)
