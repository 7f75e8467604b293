"""What all quantized layers share: a weight that stays as it was stored, and products that go over rows."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_gpt.layers.linear import LinearLayer


class QuantizedLinear(LinearLayer):
    """A `LinearLayer` whose `weight` is of whatever shape and dtype suits the class below; nothing in it trains.

    `.to(...)` and the like move it between devices and leave its dtypes alone: in another dtype, stored codes and
    their scales would mean something else.

    Args:
        linear: the layer to take the place of, on the device where it is to be computed.
    """

    def __init__(self, linear: LinearLayer) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else frozen(linear.bias)

    def matmul_of_rows(self, x: Tensor) -> Tensor:
        """x W^T + bias, (N, in_features) -> (N, out_features) in the dtype of x, for N of at least 1."""
        raise NotImplementedError

    def input_gradient_of_rows(self, dy: Tensor) -> Tensor:
        """dy W, (N, out_features) -> (N, in_features) in the dtype of dy, for N of at least 1."""
        raise NotImplementedError

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows of W, (stop - start, in_features) in fp32."""
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
    """f of all rows of x, (..., n) -> (..., n_out); there may be none, as for an expert that no token chose."""
    if x.numel() == 0:
        return x.new_zeros(*x.shape[:-1], n_out)
    return f(x.reshape(-1, x.size(-1))).view(*x.shape[:-1], n_out)


def frozen(x: Tensor) -> nn.Parameter:
    """x as a parameter that does not train."""
    return nn.Parameter(x.detach(), requires_grad=False)
