"""Quantized layers compute what their stored weight says, and pass gradients to their input and nowhere else."""

import sys
from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gpt import args
from lit_gpt.errors import UserError
from lit_gpt.layers import cpu_matmul as matmul
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.quantize import QUANTIZATIONS, quantized, require_quantizable

BNB = [kind for kind in QUANTIZATIONS if kind.startswith("bnb.")]
FOUR_BIT = [kind for kind in BNB if "int8" not in kind]
WEIGHT_ERROR = {"nf4": 0.096, "fp4": 0.127, "int8": 0.0085, "fp8": 0.0275}
"""Largest relative error of normally distributed weights, in the norm of the whole matrix."""
INPUT_ERROR = {"nf4": 1e-6, "fp4": 1e-6, "int8": 0.0085, "fp8": 0.0275}
"""The same of a product with the stored weight: what rounding the other factor costs."""


def of(table, kind):
    return next(value for name, value in table.items() if name in kind)


def error(got, want):
    got, want = got.detach().float(), want.detach().float()
    return float((got - want).norm() / want.norm())


def make_linear(n_in=256, n_out=96, bias=True, dtype=torch.float32):
    torch.manual_seed(n_in + n_out)
    linear = Linear(n_in, n_out, bias=bias)
    torch.nn.init.normal_(linear.weight, std=0.02)
    return linear.to(dtype)


def rounded(x, kind):
    """x as codes that hold the largest magnitude of each row, and their scales; in fp64, by search of the nearest."""
    if kind == "int8":
        grid = torch.arange(-127, 128, dtype=torch.float64)
    else:
        grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
        grid = grid[grid.isfinite()].unique()
    scale = x.float().abs().amax(1, keepdim=True) / grid.max().float()
    h = (x.float() / scale).double()
    above = torch.searchsorted(grid, h).clamp(1, len(grid) - 1)
    low, high = grid[above - 1], grid[above]
    even = (above - 1) % 2 == len(grid) // 2 % 2  # a tie goes to the code whose last bit is 0, as zero's is
    low_is_nearest = (h - low < high - h) | ((h - low == high - h) & even)
    return torch.where(low_is_nearest, low, high), scale.double()


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_stored_weight(kind, bias):
    linear = make_linear(bias=bias)
    layer = quantized(linear, kind)
    weight = layer.dequantize()
    assert weight.shape == linear.weight.shape and weight.dtype == torch.float32
    assert 1e-4 < error(weight, linear.weight) < of(WEIGHT_ERROR, kind)
    x, dy = torch.randn(3, 33, 256), torch.randn(3, 33, 96)
    y, dx = layer.forward_no_grad(x), layer.grad_input(dy)
    assert error(y, torch.nn.functional.linear(x, weight, linear.bias)) < of(INPUT_ERROR, kind)
    assert error(dx, dy @ weight) < (1e-6 if kind in BNB else of(INPUT_ERROR, kind))
    assert y.shape == dy.shape and dx.shape == x.shape


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_8_bit_products_are_exactly_those_of_the_codes(kind):
    """Both factors are on the grid: no scale was forgotten, no code is off by one."""
    linear = make_linear(bias=False)
    layer = quantized(linear, kind)
    x, dy = torch.randn(33, 256) * torch.logspace(-20, 3, 33).unsqueeze(1), torch.randn(33, 96)
    w, w_scale = rounded(linear.weight, kind)
    torch.testing.assert_close(layer.dequantize().double(), w * w_scale, rtol=1e-6, atol=0)
    codes, scale = rounded(x, kind)
    torch.testing.assert_close(layer.forward_no_grad(x) / scale, (codes @ w.T) * w_scale.T, rtol=1e-5, atol=1e-5)
    codes, scale = rounded(dy * w_scale.float().T, kind)
    torch.testing.assert_close(layer.grad_input(dy) / scale, codes @ w, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("kind", FOUR_BIT)
def test_4_bit_layers_are_those_of_bitsandbytes(kind):
    import bitsandbytes as bnb

    linear = make_linear()
    theirs = bnb.nn.Linear4bit(256, 96, quant_type=kind[4:7], compress_statistics=kind.endswith("-dq"))
    theirs.load_state_dict(linear.state_dict())
    theirs = theirs.to("cpu")  # where they quantize
    ours = quantized(linear, kind)
    assert torch.equal(ours.weight, theirs.weight)
    x = torch.randn(5, 256, requires_grad=True)
    torch.testing.assert_close(ours.forward_no_grad(x), theirs(x), rtol=1e-6, atol=1e-6)
    theirs(x).square().sum().backward()
    want, x.grad = x.grad, None
    ours(x).square().sum().backward()
    torch.testing.assert_close(x.grad, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["bnb.int8", "bnb.int8-training"])
def test_bnb_int8_is_that_of_bitsandbytes_and_keeps_outliers_in_16_bits(kind):
    import bitsandbytes as bnb

    linear = make_linear(dtype=torch.float16)
    theirs = bnb.nn.Linear8bitLt(256, 96, has_fp16_weights=False, threshold=6.0)
    theirs.load_state_dict(linear.state_dict())
    theirs = theirs.to("cpu").eval()
    x = torch.randn(5, 256).half()
    x[:, 7] *= 50
    before = x.clone()
    ours = quantized(linear, kind)
    assert torch.equal(ours.weight, theirs.weight)
    assert error(ours.forward_no_grad(x), theirs(x)) < 1e-3
    assert torch.equal(x, before)
    want = x.float() @ ours.dequantize().T + linear.bias.float()
    assert 5 * error(ours.forward_no_grad(x), want) < error(quantized(linear, "int8").forward_no_grad(x), want)


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_gradients_go_to_the_input_and_nowhere_else(kind):
    layer = quantized(make_linear(), kind)
    assert not any(p.requires_grad for p in layer.parameters())
    x = torch.randn(2, 5, 256, requires_grad=True)
    y = layer(x)
    assert not layer(x.detach()).requires_grad
    with torch.no_grad():
        assert torch.equal(layer(x), y)
    assert torch.equal(layer.forward_no_grad(x), y) and not layer.forward_no_grad(x).requires_grad
    dy = torch.randn_like(y)
    y.backward(dy)
    assert torch.equal(x.grad, layer.grad_input(dy))
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_in_16_bits_gets_16_bits_back(kind, dtype):
    linear = make_linear(dtype=dtype)
    layer = quantized(linear, kind)
    x, dy = torch.randn(9, 256).to(dtype), torch.randn(9, 96).to(dtype)
    y, dx = layer.forward_no_grad(x), layer.grad_input(dy)
    assert y.dtype == dx.dtype == dtype
    weight, rounding = layer.dequantize(), 0 if dtype == torch.float32 else 0.004
    want = x.float() @ weight.T + linear.bias.float()
    assert error(y, want) < of(INPUT_ERROR, kind) + rounding
    assert error(dx, dy.float() @ weight) < of(INPUT_ERROR, kind) + rounding


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("n_in, n_out", [(256, 96), (70, 33)])  # of 70, blocks of 64 end within a row
def test_some_rows_of_a_weight_are_those_of_all_of_it(kind, n_in, n_out):
    layer = quantized(make_linear(n_in, n_out), kind)
    whole = layer.dequantize()
    for start, stop in ((0, n_out), (0, 1), (3, 7), (n_out - 1, n_out), (5, 5 + n_out // 2)):
        assert torch.equal(layer.rows(start, stop), whole[start:stop])
    if kind in FOUR_BIT:
        import bitsandbytes as bnb

        assert torch.equal(bnb.functional.dequantize_4bit(layer.weight, layer.state), whole)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.is_floating_point():
            self.numel = max(self.numel, made.numel())
        return made


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZATIONS if "bnb.int8" not in kind])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_in, n_out", [(256, 96), (70, 33)])
def test_a_cpu_makes_a_few_rows_of_a_weight_at_a_time(kind, dtype, n_in, n_out, monkeypatch):
    monkeypatch.setattr(matmul, "MISSING", frozenset({torch.bfloat16}))
    layer = quantized(make_linear(n_in, n_out), kind)
    x, dy = torch.randn(9, n_in).to(dtype), torch.randn(9, n_out).to(dtype)
    want = layer.forward_no_grad(x), layer.grad_input(dy)
    room = 9 * n_in  # as many as the rows of x and y have
    monkeypatch.setattr(matmul, "PART", room)
    if kind in BNB:
        monkeypatch.delattr("bitsandbytes.matmul_4bit")  # which unpacks all of a weight, unseen by `Largest`
    with Largest() as largest:
        got = layer.forward_no_grad(x), layer.grad_input(dy)
    assert largest.numel <= room + 2 * 64 < n_in * n_out
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_casting_a_model_leaves_its_quantized_layers_alone(kind):
    layer = quantized(make_linear(), kind)
    x = torch.randn(4, 256)
    before = layer.forward_no_grad(x)
    assert torch.equal(layer.to(torch.bfloat16).half().forward_no_grad(x), before)


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_no_rows_rows_of_zeros_and_odd_sizes(kind):
    layer = quantized(make_linear(n_in=23, n_out=7), kind)
    assert layer.forward_no_grad(torch.zeros(0, 23)).shape == (0, 7)
    assert layer.grad_input(torch.zeros(2, 0, 7)).shape == (2, 0, 23)
    torch.testing.assert_close(layer.forward_no_grad(torch.zeros(2, 23)), layer.bias.expand(2, 7))
    assert torch.equal(layer.grad_input(torch.zeros(2, 7)), torch.zeros(2, 23))
    x = torch.randn(23)
    assert error(layer.forward_no_grad(x), layer.dequantize() @ x + layer.bias) < 0.05
    empty = make_linear(n_in=32, n_out=4)
    torch.nn.init.zeros_(empty.weight[1])
    assert torch.equal(quantized(empty, kind).dequantize()[1], torch.zeros(32))


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_weights_take_the_bytes_that_their_name_says(kind):
    linear = make_linear(n_in=1024, n_out=1024)
    layer = quantized(linear, kind)
    assert layer.weight.nbytes == linear.weight.numel() * (0.5 if kind in FOUR_BIT else 1)


def test_the_flag_has_the_values_of_the_table():
    assert get_args(args.Quantization) == tuple(QUANTIZATIONS)


def test_what_cannot_be_quantized_is_said_in_one_line(monkeypatch):
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match=r"--precision bf16-mixed.*pass --precision bf16-true"):
        require_quantizable("int8", "bf16-mixed", cpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A100")
    with pytest.raises(UserError, match=r"8\.9.*A100 has 8\.0; pass --quantize int8"):
        require_quantizable("fp8", "bf16-true", torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for kind in BNB:
        with pytest.raises(UserError, match=r'bitsandbytes; run: pip install -e "\.\[quantize\]"'):
            require_quantizable(kind, "bf16-true", cpu)
    for kind in ("int8", "fp8"):
        require_quantizable(kind, "bf16-true", cpu)
