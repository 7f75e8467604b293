"""Matmuls of few rows on a CPU: weights packed once in fp16, activations and sums in fp32.

torch has such a product in FBGEMM's kernels for x86 (AVX2 and AVX-512). It reads two bytes a weight at nearly the speed
of the memory, where torch's own product of one row reads them at a third of it, and rounds no activation.

Every value of a weight in bf16 or fp16 is kept as it is, but that of bf16 below 2^-17 is rounded by at most 2^-25. An
fp32 weight is packed only if the same is true of it: one that came from a checkpoint in 16 bits.

Letters: N rows, K input channels, M output channels.
"""

import copy
import operator
from collections.abc import Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.generation.cpu.compiling import compiled, identity_of, made_once, one_by_one
from lit_gpt.layers.cpu_matmul import MISSING
from lit_gpt.layers.linear import Linear, LinearLayer
from lit_gpt.layers.quantize.eight_bit import Int8Linear
from lit_gpt.methods.lora.layer import LoRALinear
from lit_gpt.methods.lora.shared import Updates
from lit_gpt.model import GPT
from lit_gpt.resources import total_memory

_ROUNDING = 2.0**-25
"""Largest error of a packed weight: half the distance between the smallest numbers in fp16."""
_LARGEST = 65504.0
"""Largest number in fp16."""
_FEW = 16
"""Most rows that are multiplied by a packed weight on a CPU with fast matmuls in the weight's dtype."""
_LARGE = 2**19 if torch.cpu._is_vnni_supported() else 2**21
"""Fewest int8 weights of a matmul that are read as such: with fewer, it takes longer to split the activations than to
read two bytes a weight. A CPU with instructions for sums of 8-bit products (AVX-512 VNNI) reads them faster."""
_CACHED = 2**15
"""Weights that are checked at once: few enough for a core's cache, and for one thread."""
_ROWS = 4096
"""Most output channels that are packed together: FBGEMM reads a weight by columns, and a cache line of each row of that
many stays in a core's cache until the next column is read."""
_SHARE = 0.4
"""Share of the machine's memory that packed weights take at most."""


def _packs() -> bool:
    """Returns whether this CPU and this torch have the product."""
    engine = torch.backends.quantized.engine
    return engine in ("fbgemm", "x86", "onednn") and hasattr(torch.ops.quantized, "linear_dynamic_fp16")


def _exact(weight: Tensor) -> bool:
    """Returns whether fp16 keeps a weight (M, K), as said above."""
    if weight.dtype != torch.float32:
        return weight.dtype == torch.float16 or bool(torch.stack(weight.aminmax()).abs().max() <= _LARGEST)
    parts = weight.flatten().split(_CACHED)  # most weights that fp16 does not keep are found by the first one
    return all(bool((part - part.half()).abs_().max() <= _ROUNDING) for part in parts if len(part))


class _Packed(nn.Module):
    """The product with weights in fp16.

    Args:
        weights: (M_i, K) each.
        scale: factor of each output channel, (M,); None means 1.
        bias: (M,) in fp32.
    """

    def __init__(self, weights: Sequence[Tensor], scale: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.weights, self.scale, self.bias = list(weights), scale, bias
        has_fast = weights[0].dtype in (torch.bfloat16, torch.float16) and weights[0].dtype not in MISSING
        self.few = _FEW if has_fast else 2**62
        parts = (part.float() for weight in weights for part in weight.split(_ROWS))
        self.packed = [torch.ops.quantized.linear_prepack_fp16(part, None) for part in parts]

    def forward(self, x: Tensor) -> Tensor:
        if x.size(0) <= self.few:
            ys = [torch.ops.quantized.linear_dynamic_fp16(x, packed) for packed in self.packed]
        else:
            rounded = x.to(self.weights[0].dtype)
            ys = [F.linear(rounded, w).float() for w in self.weights]
        y = ys[0] if len(ys) == 1 else torch.cat(ys, -1)
        scale, bias = self.scale, self.bias
        if scale is not None:
            y = y.mul_(scale)
        return y if bias is None else y.add_(bias)


class _Digits(nn.Module):
    """The product with int8 weights: x is split into two digits in base 126, which are multiplied as integers.

    That keeps 14 bits of a row's largest activation, and twice as many rows cost next to nothing while they are few.
    FBGEMM's product in 8 bits rounds the activations of a whole matrix to 7 bits by their least and largest value; a
    last row with -64 and 63 makes that rounding change nothing.
    """

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        zeros = torch.zeros(len(scale), dtype=torch.long)
        with one_by_one():
            whole = torch._make_per_channel_quantized_tensor(codes, scale.double() / 7938, zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(whole, None)
        self.bias = bias
        self.pins = torch.zeros(1, codes.size(1), dtype=torch.float32)
        self.pins[0, 0], self.pins[0, 1] = -64, 63
        self.most = torch.tensor(7938.0, dtype=torch.float32)  # two digits: 63 * 126

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(0)
        largest = torch.linalg.vector_norm(x, float("inf"), [-1], True).clamp_min_(1e-30)
        z = x * torch.div(self.most, largest)
        high = (z * (1 / 126)).round_()  # -63 .. 63, as is what is left
        rows = torch.cat([high, torch.sub(z, high, alpha=126), self.pins])
        y = torch.ops.quantized.linear_dynamic(rows, self.packed, True)  # rounds what is left
        y = torch.add(y.narrow(0, n, n), y.narrow(0, 0, n), alpha=126).mul_(largest)
        bias = self.bias
        return y if bias is None else y + bias


class _Plain(nn.Module):
    """The product with fp32 weights as they are stored."""

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self.weights, self.bias = list(weights), bias

    def forward(self, x: Tensor) -> Tensor:
        ys = [F.linear(x, w) for w in self.weights]
        y = ys[0] if len(ys) == 1 else torch.cat(ys, -1)
        bias = self.bias
        return y if bias is None else y + bias


class _Updated(nn.Module):
    """The product with LoRA's updates of some layers side by side, all of them as one, added to that of their weights.

    Args:
        frozen: the product with the frozen weights.
        layers: some have updates, in order.
    """

    def __init__(self, frozen: nn.Module, layers: Sequence[Any]) -> None:
        super().__init__()
        self.frozen = frozen
        updates = [(i, Updates(m, torch.float32)) for i, m in enumerate(layers) if isinstance(m, LoRALinear)]
        sizes: list[int] = [getattr(m, "linear", m).out_features for m in layers]
        self.A = torch.cat([u.A for _, u in updates])  # (R, K)
        self.B = self.A.new_zeros(sum(sizes), len(self.A))  # (M, R), zeros where one's channels meet another's ranks
        factor, shift = self.A.new_ones(sum(sizes)), self.A.new_zeros(sum(sizes))
        rank = 0
        for i, u in updates:
            first = sum(sizes[:i])
            for (start, stop), B in zip(u.blocks, u.Bs, strict=True):
                self.B[first + start : first + stop, rank : rank + B.size(1)] = B * u.scaling
                rank += B.size(1)
            for (start, stop), m in zip(u.blocks, u.magnitudes, strict=False):
                at = slice(first + start, first + stop)
                factor[at] = m
                shift[at] = 0.0 if u.bias is None else u.bias[start:stop].float() * (1 - m)  # a bias is not scaled
        scales = any(u.magnitudes for _, u in updates)
        self.factor, self.shift = (factor, shift) if scales else (self.A.new_empty(0), self.A.new_empty(0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.frozen(x)
        if self.factor.numel() > 0:
            y = torch.addcmul(self.shift, y, self.factor)
        return torch.addmm(y, x @ self.A.t(), self.B.t())


def product(*layers: Linear | Int8Linear | LoRALinear) -> nn.Module:
    """Returns a module for TorchScript that maps x (N, K) in fp32 to the outputs of `layers`, side by side, in fp32.

    It is more precise than an `Int8Linear`: activations are not rounded to 8 bits, but to 14 or not at all.

    Args:
        layers: `known` ones, all of the same class, or LoRA's around them.
    """
    bases: list[Any] = [layer.linear if isinstance(layer, LoRALinear) else layer for layer in layers]
    frozen = made_once(bases, lambda: _frozen_product(bases))
    return frozen if all(map(operator.is_, bases, layers)) else _Updated(frozen, layers)


def _frozen_product(layers: Sequence[Any]) -> nn.Module:
    """Returns the product with the weights of `known` layers, all of the same class."""
    weights = [layer.weight.detach() for layer in layers]
    none = torch.zeros(max(layer.out_features for layer in layers), dtype=torch.float32)
    biases = [none[: layer.out_features] if layer.bias is None else layer.bias.detach().float() for layer in layers]
    bias = None if all(layer.bias is None for layer in layers) else torch.cat(biases)
    if weights[0].dtype != torch.int8:
        return _Packed(weights, None, bias) if _packs() and all(map(_exact, weights)) else _Plain(weights, bias)
    scale = torch.cat([layer.scale for layer in layers if isinstance(layer, Int8Linear)])
    if splits_digits(*layers):
        return _Digits(torch.cat(weights), scale, bias)
    return _Packed(weights, scale, bias)


def splits_digits(*layers: Linear | Int8Linear | LoRALinear) -> bool:
    """Returns whether `product` of these layers splits activations into digits."""
    weights = [(layer.linear if isinstance(layer, LoRALinear) else layer).weight for layer in layers]
    return weights[0].dtype == torch.int8 and sum(w.numel() for w in weights) >= _LARGE


def known(layer: nn.Module) -> bool:
    """Returns whether `product` knows a linear layer by itself; it knows LoRA's around such a one, and no adapters."""
    return type(layer) is Linear or (type(layer) is Int8Linear and _digits_work())


class _PackedLinear(LinearLayer):
    """A linear layer for fp32 activations that multiplies few rows fast; it keeps the weight of `linear`, too."""

    def __init__(self, linear: Linear | Int8Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.product = compiled(linear, lambda: product(linear))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_no_grad(x)

    def forward_no_grad(self, x: Tensor) -> Tensor:
        return self.product(x.flatten(0, -2)).unflatten(0, x.shape[:-1]) if x.numel() else x.new_zeros(
            *x.shape[:-1], self.out_features
        )  # fmt: skip


def packed(module: nn.Module) -> nn.Module:
    """Returns a module that shares everything with `module` but its linear layers, which become `_PackedLinear`."""
    if known(module):
        assert isinstance(module, Linear | Int8Linear)
        return _PackedLinear(module)
    children = {name: packed(child) for name, child in module.named_children()}
    if all(child is getattr(module, name) for name, child in children.items()):
        return module
    twin = copy.copy(module)
    twin._modules = {**module._modules, **children}
    return twin


@cache
def _digits_work() -> bool:
    """Returns whether this torch and this CPU multiply the digits of `_Digits` exactly."""
    if not _packs() or not hasattr(torch.ops.quantized, "linear_dynamic"):
        return False
    codes = (torch.arange(64 * 40).reshape(64, 40) * 37 % 255 - 127).to(torch.int8)
    x = (torch.arange(3 * 40).reshape(3, 40) * 17 % 127 - 63.0) * 126  # no digit but the first
    x[:, :2] = 7938
    try:
        y = _Digits(codes, torch.ones(64), None)(x)
    except RuntimeError:
        return False
    return bool(((y.double() - x.double() @ codes.double().T).abs() < 0.5 + 1e-6 * y.abs()).all())


_SPED_UP: WeakKeyDictionary[GPT, tuple[Any, bool]] = WeakKeyDictionary()
"""Model -> its parameters' identity and the result of `speeds_up`."""


def speeds_up(model: GPT) -> bool:
    """Returns whether `packed` layers serve a model: on a CPU, in a dtype that they keep, with room for the copy."""
    if model.transformer.wte.weight.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    identity = identity_of(model)
    found = _SPED_UP.get(model)
    if found is None or found[0] != identity:
        found = _SPED_UP[model] = identity, _keeps(model)
    return found[1]


def _keeps(model: GPT) -> bool:
    """Returns whether packing keeps all weights of a model, and there is room for them."""
    layers = [m for m in model.modules() if known(m)]
    n_bytes = sum(2 * m.get_parameter("weight").numel() for m in layers)
    weights = [m.weight for m in layers if isinstance(m, Linear)]
    if n_bytes > _SHARE * total_memory():
        return False
    if all(w.dtype == torch.float32 for w in weights):  # those that cannot be packed are taken as they are
        return True
    return _packs() and all(map(_exact, weights))
