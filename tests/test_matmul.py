"""Products in 16 bits, by torch's own or by those of fp32: the same numbers, and nothing wide is kept."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import ALL
from tiny import LENGTHS, documents_of, gradients, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gpt.args import AdapterArgs, FullArgs, LoRAArgs
from lit_gpt.data.batches import collate
from lit_gpt.layers import cpu_matmul as matmul
from lit_gpt.layers.linear import Linear
from lit_gpt.methods import adapter, adapter_v2, full, lora
from lit_gpt.training.loss import loss_sum

HALVES = (torch.bfloat16, torch.float16)
PROCESSORS = {"with": frozenset(), "without": frozenset(HALVES)}
"""Whether a CPU has 16-bit products or not -> the dtypes that it has none for."""
METHODS = {
    "lora": (lora, LoRAArgs(lora_r=3, lora_dropout=0.0, **ALL)),
    "dora": (lora, LoRAArgs(lora_r=3, lora_dropout=0.0, lora_dora=True, lora_init="pissa", **ALL)),
    "adapter": (adapter, AdapterArgs(adapter_start_layer=0)),
    "adapter_v2": (adapter_v2, AdapterArgs(adapter_start_layer=0)),
    "full": (full, FullArgs()),
}


@pytest.fixture(params=PROCESSORS)
def processor(request, monkeypatch):
    """A CPU with or without 16-bit products."""
    monkeypatch.setattr(matmul, "MISSING", PROCESSORS[request.param])
    return request.param


@pytest.fixture
def without(monkeypatch):
    """A CPU without 16-bit products, whose cache holds little."""
    monkeypatch.setattr(matmul, "MISSING", PROCESSORS["without"])
    monkeypatch.setattr(matmul, "PART", 100)


def assert_rounded(got, exact, dtype):
    """`got` is `exact`, rounded to `dtype`; sums in another order may round to the other neighbour."""
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), exact.float(), rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("K, M", [(7, 300), (300, 7), (64, 48), (1, 1)])  # PART holds less than a row, or some
@pytest.mark.parametrize("shape", [(1,), (2, 5), (40,)])
def test_a_product_is_that_of_fp32_rounded_once(dtype, K, M, shape, without):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*shape, K).to(dtype), torch.randn(M, K).to(dtype), torch.randn(M).to(dtype)
    exact = x.double() @ weight.double().T
    assert_rounded(matmul.matmul(x, weight.T), exact, dtype)
    assert_rounded(matmul.matmul(x, weight.T.contiguous()), exact, dtype)
    assert_rounded(matmul.linear(x, weight), exact, dtype)
    assert_rounded(matmul.linear(x, weight, bias), exact + bias.double(), dtype)
    out = torch.randn(x[..., 0].numel(), M + 2).to(dtype)
    part = out[:, 1:-1]
    exact = part.double() + 0.7 * exact.flatten(0, -2)
    edges = out[:, [0, -1]].clone()
    matmul.add_matmul(part, x.flatten(0, -2), weight.T, 0.7)
    assert_rounded(part, exact, dtype)
    assert torch.equal(out[:, [0, -1]], edges)


@pytest.mark.parametrize("n, parts", [(39, 1), (40, 2), (79, 2), (80, 1)])
def test_a_product_that_would_leave_cores_idle_is_computed_in_halves(n, parts, monkeypatch):
    """By AMX, of 40 columns: as many rows or more, but not twice as many."""
    monkeypatch.setattr(matmul, "MISSING", PROCESSORS["with"])
    monkeypatch.setattr(matmul, "HAS_AMX", True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    torch.manual_seed(0)
    x, weight = torch.randn(1, n, 24).bfloat16(), torch.randn(40, 24).bfloat16()
    called = []
    monkeypatch.setattr(torch, "mm", lambda *args, mm=torch.mm, **kwargs: called.append(1) or mm(*args, **kwargs))
    with torch.no_grad():
        for got in (matmul.linear(x, weight), matmul.matmul(x, weight.T), matmul.matmul(x, weight.T.contiguous())):
            assert_rounded(got, x.double() @ weight.double().T, torch.bfloat16)
    assert len(called) == (6 if parts == 2 else 0)
    assert matmul.linear(x.requires_grad_(), weight).requires_grad, "what autograd records stays whole"


def test_rows_of_nothing_have_a_product(without):
    x, weight = torch.zeros(0, 5).bfloat16(), torch.ones(3, 5).bfloat16()
    assert matmul.linear(x, weight).shape == matmul.matmul(x, weight.T).shape == (0, 3)


def test_products_of_other_dtypes_and_of_a_cpu_that_has_them_are_torchs_own(monkeypatch):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(20, 64), torch.randn(48, 64), torch.randn(48)
    for missing, dtypes in ((frozenset(HALVES), [torch.float32]), (frozenset(), HALVES)):
        monkeypatch.setattr(matmul, "MISSING", missing)
        for dtype in dtypes:
            a, w, b = (t.to(dtype) for t in (x, weight, bias))
            assert torch.equal(matmul.linear(a, w, b), F.linear(a, w, b))
            assert torch.equal(matmul.matmul(a, w.T), a @ w.T)


def test_what_this_cpu_lacks_is_what_its_flags_say():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = {f for line in file if line.startswith("flags") for f in line.split()}
    except OSError:
        flags = set()
    if "avx2" not in flags:
        pytest.skip("this is not Linux on an x86 processor with AVX2")
    if "avx512f" not in flags and "avx_vnni" not in flags:
        assert matmul.missing() == frozenset(HALVES)
    if flags & {"avx512_bf16", "amx_bf16"}:
        assert torch.bfloat16 not in matmul.missing()


def prepared(kind, method):
    """A model whose weights are of bf16, in fp32, with what the method adds."""
    model = tiny(kind)
    for p in model.parameters():
        p.data = p.data.bfloat16().float()
    module, args = METHODS[method]
    torch.manual_seed(0)
    module.inject(model, args)
    added = [n for n, _ in model.named_parameters() if "lora_B" in n or "gating_factor" in n or "adapter_bias" in n]
    for name in added:
        torch.nn.init.normal_(model.get_parameter(name), std=0.1)
    return model


def halved(model):
    """A copy with the weights of the base in bf16, as a run has it."""
    model = copy.deepcopy(model)
    for p in model.parameters():
        if not p.requires_grad:
            p.data = p.data.bfloat16()
    return model


def assert_near(got, want, tolerance):
    for name, x in want.items():
        error = (got[name].float() - x).norm() / (x.norm() + 1e-3)
        assert error < tolerance, f"{name}: {error}"


@pytest.mark.parametrize("kind", ["llama-gqa", "neox", "gemma2", "mixtral"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_in_16_bits_is_within_rounding_of_that_in_32(kind, method, processor):
    wide = prepared(kind, method)
    narrow = halved(wide) if method != "full" else copy.deepcopy(wide).bfloat16()
    batch = collate(documents_of(LENGTHS))
    losses = [loss_sum(model, batch) for model in (wide, narrow)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=2e-2)
    want, got = (gradients(model, loss) for model, loss in zip((wide, narrow), losses, strict=True))
    assert got.keys() == want.keys() and want
    if kind != "mixtral":  # whose rounded scores choose other experts
        assert_near(got, want, 0.1)


def test_under_autocast_dora_trains_on_layers_with_biases(processor):
    model = prepared("neox", "dora")
    batch = collate(documents_of(LENGTHS))
    want = gradients(model, loss_sum(model, batch))
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_sum(model, batch)
    assert_near(gradients(model, loss), want, 0.1)


class Products(TorchDispatchMode):
    """Notes the dtypes of the matrix products that are made, those of a few rows apart."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "addmm_", "baddbmm"):
            a = args[1] if name.startswith(("addmm", "baddbmm")) else args[0]
            if a.size(-2) > matmul.FEW:
                self.dtypes.add(a.dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["llama-gqa", "gemma2", "mistral", "qwen3"])  # a window, normed heads
@pytest.mark.parametrize("method", METHODS)
def test_under_autocast_all_products_are_made_as_the_processor_has_them(kind, method, processor):
    model = prepared(kind, method)
    batch = collate(documents_of(LENGTHS))
    want = gradients(model, loss_sum(model, batch))
    with Products() as products:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_sum(model, batch)
        got = gradients(model, loss)
    of_norms = {torch.float32} if method == "dora" else set()
    assert products.dtypes == ({torch.float32} if processor == "without" else {torch.bfloat16} | of_norms)
    assert_near(got, want, 0.1)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_under_autocast_a_layer_gives_what_autocast_would(trains, dtype, monkeypatch):
    torch.manual_seed(0)
    layer, results = Linear(64, 48), []
    layer.requires_grad_(trains)
    x, dy = torch.randn(20, 64), torch.randn(20, 48)
    for missing in PROCESSORS.values():
        monkeypatch.setattr(matmul, "MISSING", missing)
        here = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype):
            y = layer(here)
        layer.zero_grad()
        y.backward(dy.to(dtype))
        results.append([y, here.grad, *(p.grad for p in layer.parameters() if trains)])
    for got, want in zip(results[1], results[0], strict=True):
        assert got.dtype == want.dtype
        assert (got.float() - want.float()).norm() / want.float().norm() < 2 * torch.finfo(dtype).eps


def test_the_backward_pass_keeps_no_copy_of_a_frozen_weight(processor):
    layer = Linear(64, 4800).bfloat16().requires_grad_(False)
    own, kept = {p.data_ptr() for p in layer.parameters()}, []
    x = torch.randn(20, 64).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert all(t.data_ptr() in own for t in kept)
