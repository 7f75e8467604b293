"""On a GPU, quantized layers compute what they compute on a CPU, for any number of rows, compiled and not."""

import copy

import pytest
import torch

from lit_gpt.layers.compiled import set_compile
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.quantize import QUANTIZATIONS, quantized
from lit_gpt.layers.quantize.eight_bit import column_major, rescale, round_rows, round_tokens, transpose

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

ROWS = (1, 2, 16, 17, 32, 33, 100, 1000, 2048)
SIZES = ((256, 96), (1024, 4096), (72, 40))
"""(in_features, out_features); the last is none that the GPU's 8-bit products take."""
BF16 = 0.004
"""Relative error of a result for being rounded to bf16, and a little more."""
INPUT_ERROR = {"int8": 0.0085, "fp8": 0.0275}
"""Relative error of a product with the stored weight: what rounding the other factor costs."""
SUMMING = {"int8": 0.002, "fp8": 0.01}
"""Relative difference of the GPU's sums and those of the CPU in fp32; the tensor cores' own registers are narrow."""


@pytest.fixture(autouse=True, params=["compiled", "plain"])
def compiling(request):
    set_compile(request.param == "compiled")
    yield
    set_compile(False)


def error(got, want):
    got, want = got.detach().float().cpu(), want.detach().float().cpu()
    return float((got - want).norm() / want.norm())


def make_linear(n_in, n_out, bias=True):
    torch.manual_seed(n_in + n_out)
    linear = Linear(n_in, n_out, bias=bias)
    torch.nn.init.normal_(linear.weight, std=0.02)
    return linear.to("cuda", torch.bfloat16)


def skip_unless_possible(kind):
    if kind.startswith("bnb."):
        pytest.importorskip("bitsandbytes")
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with fp8")


def inputs(n, size):
    torch.manual_seed(n)
    return (torch.randn(n, width, device="cuda", dtype=torch.bfloat16) for width in size)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_8_bit_products_are_those_of_the_cpu(kind, size):
    skip_unless_possible(kind)
    layer = quantized(make_linear(*size), kind)
    on_cpu = copy.deepcopy(layer).cpu()
    assert (
        layer.weight.is_cuda
        and not on_cpu.weight.is_cuda
        and torch.equal(on_cpu.dequantize(), layer.dequantize().cpu())
    )
    weight, bias = on_cpu.dequantize(), on_cpu.bias.float()
    for n in ROWS:
        x, dy = inputs(n, size)
        y, dx = layer.forward_no_grad(x), layer.grad_input(dy)
        assert y.shape == (n, size[1]) and dx.shape == (n, size[0]) and y.dtype == dx.dtype == torch.bfloat16
        assert error(y, on_cpu.forward_no_grad(x.cpu())) < SUMMING[kind] + BF16, n
        assert error(dx, on_cpu.grad_input(dy.cpu())) < SUMMING[kind] + BF16, n
        assert error(y, x.float().cpu() @ weight.T + bias) < INPUT_ERROR[kind] + SUMMING[kind] + BF16, n
        assert error(dx, dy.float().cpu() @ weight) < INPUT_ERROR[kind] + SUMMING[kind] + BF16, n


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_8_bit_products_in_other_dtypes_and_without_bias(kind, dtype):
    skip_unless_possible(kind)
    layer = quantized(make_linear(1024, 768, bias=False), kind)
    x, dy = (t.to(dtype) for t in inputs(33, (1024, 768)))
    y, dx = layer.forward_no_grad(x), layer.grad_input(dy)
    assert y.dtype == dx.dtype == dtype
    weight = layer.dequantize()
    assert error(y, x.float() @ weight.T) < INPUT_ERROR[kind] + SUMMING[kind] + BF16
    assert error(dx, dy.float() @ weight) < INPUT_ERROR[kind] + SUMMING[kind] + BF16


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_weights_are_rounded_as_on_the_cpu(kind):
    skip_unless_possible(kind)
    linear = make_linear(1024, 768)
    here, there = quantized(linear, kind), quantized(linear.cpu(), kind)
    assert_same_codes((here.weight, here.scale), (there.weight, there.scale))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("n", [32, 48, 2048])
def test_compiled_rounding_is_the_plain_one(dtype, n):
    skip_unless_possible("int8" if dtype == torch.int8 else "fp8")
    x, channels = inputs(n, (1024, 1024))
    x[3] = 0
    x[5] *= 1e-20
    channels = channels[0].float()
    for factor in (None, channels):
        assert_same_codes(round_tokens(x, dtype, factor), round_rows(x, dtype, factor))
    sums = torch.randint(-(2**20), 2**20, (n, 768), device="cuda", dtype=torch.int32)
    rows, columns, bias = (
        torch.rand(n, 1, device="cuda"),
        torch.rand(768, device="cuda"),
        torch.rand(768, device="cuda"),
    )
    got = rescale(sums, rows, columns, bias.bfloat16(), torch.bfloat16)
    assert error(got, sums.float() * rows * columns + bias) < BF16
    assert error(rescale(sums, rows, None, None, torch.bfloat16), sums.float() * rows) < BF16


def assert_same_codes(got, want):
    """Divisions are rounded a little differently here and there: a few codes beside each other may be swapped."""
    (codes, scale), (other_codes, other_scale) = ([t.detach().cpu() for t in pair] for pair in (got, want))
    torch.testing.assert_close(scale, other_scale, rtol=1e-6, atol=0)
    difference = (codes.view(torch.int8).int() - other_codes.view(torch.int8).int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_transposing_keeps_the_matrix_and_turns_its_layout(dtype):
    codes = torch.randint(-100, 100, (96, 256), device="cuda", dtype=torch.int8)
    assert torch.equal(transpose(codes), codes.t()) and transpose(codes).is_contiguous()
    turned = column_major(codes.view(dtype))
    assert turned.dtype == dtype and turned.stride() == (1, 96)
    assert torch.equal(turned.t().contiguous().view(torch.int8), codes.t())


@pytest.mark.parametrize("kind", ["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.int8", "int8", "fp8"])
def test_gradients_reach_the_input_and_no_copy_of_the_weight_stays(kind):
    skip_unless_possible(kind)
    layer = quantized(make_linear(1024, 4096), kind)
    x = torch.randn(2, 33, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(2, 33, 4096, device="cuda", dtype=torch.bfloat16)
    layer(x).backward(dy)  # libraries take their workspaces once
    x.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y = layer(x)
    held = torch.cuda.memory_allocated() - before
    assert held <= y.nbytes * 66 // 64 + 2**20, "the product keeps more than its result"
    y.backward(dy)
    del y
    assert torch.cuda.memory_allocated() - before <= x.grad.nbytes + 2**16
    weight = layer.dequantize()
    allowed = {"int8": 0.02, "fp8": 0.05}.get(kind, 0.02)
    assert error(x.grad, dy.float() @ weight) < allowed


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZATIONS if kind.startswith("bnb.")])
@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_products_of_bitsandbytes_are_those_of_the_stored_weight(kind, size):
    skip_unless_possible(kind)
    layer = quantized(make_linear(*size), kind)
    weight, allowed = layer.dequantize(), 0.0085 + 2 * BF16 if "int8" in kind else 2 * BF16
    for n in ROWS:
        x, dy = inputs(n, size)
        assert error(layer.forward_no_grad(x), x.float() @ weight.T + layer.bias.float()) < allowed, n
        assert error(layer.grad_input(dy), dy.float() @ weight) < 2 * BF16, n


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_a_layer_moves_between_devices(kind):
    skip_unless_possible(kind)
    layer = quantized(make_linear(256, 96).cpu(), kind)
    want = layer.dequantize()
    assert error(layer.cuda().dequantize(), want) < 1e-6
    (x,) = inputs(5, (256,))
    assert error(layer.forward_no_grad(x), x.float().cpu() @ want.T + layer.bias.float().cpu()) < 0.05


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_no_rows_at_all(kind):
    skip_unless_possible(kind)
    layer = quantized(make_linear(256, 96), kind)
    assert layer.forward_no_grad(torch.zeros(0, 256, device="cuda", dtype=torch.bfloat16)).shape == (0, 96)
    assert layer.grad_input(torch.zeros(2, 0, 96, device="cuda", dtype=torch.bfloat16)).shape == (2, 0, 256)
