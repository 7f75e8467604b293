"""LLaMA-Adapter v2, https://arxiv.org/abs/2304.15010: trains prompts, norms, and a scale and bias per linear layer.

A linear layer becomes y = scale * (W x + b + bias) with a scale of ones and a bias of zeros (section 3.1), W frozen.
The prompts are those of LLaMA-Adapter. All trained parameters are fp32 whatever the dtype of the base model.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.args import AdapterArgs
from lit_gpt.layers.compiled import compiled_on_gpu
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.methods import adapter
from lit_gpt.methods.parts import within
from lit_gpt.model import GPT


class AdapterLinear(nn.Module):
    """A frozen linear layer whose output gets a trained bias and is then multiplied by a trained scale.

    Attributes:
        kept_values: number of values per token that are saved for the backward pass.
    """

    def __init__(self, linear: LinearLayer) -> None:
        super().__init__()
        self.linear = linear
        self.kept_values = linear.out_features
        like = {"device": linear.weight.device, "dtype": torch.float32}
        self.adapter_bias = nn.Parameter(torch.zeros(linear.out_features, **like))
        self.adapter_scale = nn.Parameter(torch.ones(linear.out_features, **like))

    def forward(self, x: Tensor) -> Tensor:
        """Returns scale * (W x + b + bias), (..., out_features), for x (..., in_features)."""
        return _ScaledLinearFunction.apply(x, self.adapter_bias, self.adapter_scale, self.linear)


class _ScaledLinearFunction(Function):
    """The autograd function of `AdapterLinear`; the backward pass needs W x + b, which is saved, but not x.

    Args:
        x: (..., in_features).
        bias, scale: (out_features,).
        linear: the frozen layer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, scale: Tensor, linear: LinearLayer) -> Tensor:
        u = linear.forward_no_grad(x)
        ctx.linear, ctx.dtype = linear, x.dtype
        ctx.save_for_backward(u, bias, scale)
        return _scaled(u, bias, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        u, bias, scale = ctx.saved_tensors
        du, d_bias, d_scale = _scaled_backward(dy, u, bias, scale)
        dx = ctx.linear.grad_input(du).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return dx, d_bias, d_scale, None


@compiled_on_gpu
def _scaled(u: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """Returns scale * (u + bias) in the dtype of u (..., N).

    It is computed in fp32, since bf16 has only 8 significant bits for a scale near 1.
    """
    return ((u.float() + bias) * scale).to(u.dtype)


@compiled_on_gpu
def _scaled_backward(dy: Tensor, u: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of u, (..., N) in the dtype of dy, of bias (N,) and of scale (N,)."""
    d = dy.float()
    rows = tuple(range(dy.dim() - 1))
    return (d * scale).to(dy.dtype), d.sum(rows) * scale, (d * (u.float() + bias)).sum(rows)


def inject(model: GPT, args: AdapterArgs, init: bool = True, part: str | None = None) -> None:
    """Adds prompts to the upper layers of `model`, wraps all its linear layers, in place, and lets its norms train.

    Args:
        init: ignored, since the first values cost nothing; every method's `inject` takes it.
        part: the only part of the model that is changed, of `parts_of`; None is all of it.
    """
    adapter.add_prompts(model, args, part)
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, LinearLayer) and within(path, part)]
    for path, layer in layers:
        model.set_submodule(path, AdapterLinear(layer))
    for name, parameter in model.named_parameters():
        if not within(name, part):
            continue
        parameter.requires_grad = trainable(name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def trainable(name: str) -> bool:
    """Returns whether the parameter of this name belongs to the method, and is therefore trained and saved."""
    module, _, leaf = name.rpartition(".")
    norm = module.rpartition(".")[2]
    is_norm = norm == "ln_f" or norm.startswith("norm_") or norm.endswith("_norm")
    return is_norm or adapter.trainable(name) or leaf in ("adapter_bias", "adapter_scale")
