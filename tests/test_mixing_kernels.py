"""The kernels of other packages: what they are given and when; in Triton's interpreter and on a GPU, what they compute.

On the CPU stand-ins with the arguments of fla-core 0.4 to 0.6, causal-conv1d 1.5 to 1.7 and mamba-ssm 2.3 refuse what
the packages refuse, and compute each token by itself, as their papers say.
"""

import inspect
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from kernel_runs import KINDS, compared
from tiny import documents_of, tiny

from lit_gpt.data.batches import collate
from lit_gpt.layers import mixing_kernels
from lit_gpt.layers.delta import _gated_delta
from lit_gpt.layers.mamba import _scan
from lit_gpt.layers.mixing_kernels import convolved, in_kernels, scan_of_whole_texts, without_kernels
from lit_gpt.training.loss import loss_sum

RULES = {"gated_delta_rule": _gated_delta, "simple_gla": _scan}
VERSIONS = {"fla-core": "0.6.0", "causal-conv1d": "1.7.0", "mamba-ssm": "2.3.2.post1"}
LENGTHS = (70, 1, 20)


def tensors_of(name, n, dtype=torch.float32):
    """Arguments of a rule for n tokens, 2 heads, 16 channels of a key and 24 of a value."""
    torch.manual_seed(0)
    q, k = (torch.nn.functional.normalize(torch.randn(n, 2, 16), dim=-1).to(dtype).float() for _ in range(2))
    v, log_decay, strength = torch.randn(n, 2, 24).to(dtype).float(), -torch.rand(n, 2), torch.rand(n, 2)
    return [q, k, v, log_decay, *([strength] if name == "gated_delta_rule" else [])]


def token_by_token(q, k, v, g, beta, *, initial_state, cu_seqlens):
    """The output and the last states of each sequence, from the recurrence itself."""
    outputs, states = [], []
    for i, (start, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
        state = q.new_zeros(q.size(2), q.size(3), v.size(3)) if initial_state is None else initial_state[i]
        for t in range(start, end):
            state = state * g[0, t, :, None, None].exp()
            new = v[0, t] if beta is None else beta[0, t, :, None] * (v[0, t] - (k[0, t, :, None] @ state)[:, 0])
            state = state + k[0, t, :, :, None] * new[:, None]
            outputs.append((q[0, t, :, None] @ state)[:, 0])
        states.append(state)
    return torch.stack(outputs)[None], torch.stack(states)


def convolution_of(x, weight, bias, lengths, activation):
    """The convolution (1, N, n) of each text by itself."""
    assert activation in (None, "silu")
    outputs = []
    for row in x[0].split(lengths):
        padded = F.pad(row.mT, (weight.size(1) - 1, 0))[None]
        outputs.append(F.conv1d(padded, weight[:, None], bias, groups=len(weight))[0].mT)
    y = torch.cat(outputs)[None]
    return F.silu(y) if activation else y


class StandIns:
    """Packages of our own in place of the real ones, for any device; `calls` has the names of what is called.

    Each of their modules is this object; those that are `broken` cannot be imported.
    """

    def __init__(self):
        self.calls, self.versions, self.broken = [], dict(VERSIONS), []

    def chunk_gated_delta_rule(self, q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens):
        assert scale == 1.0 and output_final_state and q.dim() == 4 and len(q) == 1
        self.calls.append("gated_delta_rule")
        return token_by_token(q, k, v, g, beta, initial_state=initial_state, cu_seqlens=cu_seqlens)

    def chunk_simple_gla(self, q, k, v, g, g_gamma=None, scale=None, initial_state=None, output_final_state=False,
                         cu_seqlens=None):  # fmt: skip
        assert scale == 1.0 and output_final_state and g_gamma is None
        self.calls.append("simple_gla")
        return token_by_token(q, k, v, g, None, initial_state=initial_state, cu_seqlens=cu_seqlens)

    def causal_conv1d(self, x, weight, bias, activation, cu_seqlens):
        self.calls.append("convolution")
        return convolution_of(x, weight, bias, cu_seqlens.diff().tolist(), activation), None

    def causal_conv1d_fn(self, x, weight, bias, seq_idx, activation):
        """Its C++ refuses another layout, and loads 8 channels of 16 bits at once."""
        _, n, N = x.shape
        assert x.stride(1) == 1 and x.stride(2) > 1 and not (n % 8 or x.stride(0) % 8 or x.stride(2) % 8)
        assert x.data_ptr() % 16 == 0 and weight.shape == (n, weight.size(1)) and 2 <= weight.size(1) <= 4
        assert seq_idx.dtype == torch.int32 and seq_idx.shape == (1, N) and seq_idx.is_contiguous()
        assert bias is None or bias.dtype == weight.dtype
        self.calls.append("causal_conv1d")
        lengths = seq_idx[0].unique_consecutive(return_counts=True)[1].tolist()
        return convolution_of(x.mT, weight, bias, lengths, activation).mT

    def mamba_chunk_scan_combined(self, x, dt, A, B, C, chunk_size, D, dt_bias, dt_softplus, dt_limit, seq_idx):
        assert x.shape[:3] == dt.shape and dt_softplus and A.dtype == D.dtype == dt_bias.dtype == torch.float32
        assert seq_idx.dtype == torch.int32 and seq_idx.shape == x.shape[:2] and chunk_size % 16 == 0
        self.calls.append("ssd")
        steps = F.softplus(dt.float() + dt_bias).clamp(*dt_limit)
        q, k = (g.repeat_interleave(x.size(2) // g.size(2), 2) for g in (C, B))
        ends = F.pad(seq_idx[0].unique_consecutive(return_counts=True)[1].cumsum(0), (1, 0))
        y, _ = token_by_token(q, k, x * steps[..., None], A * steps, None, initial_state=None, cu_seqlens=ends)
        return y + x * D[:, None]


@pytest.fixture
def stand_ins(monkeypatch):
    made = StandIns()

    def there(package):
        if package in made.versions:
            return made.versions[package]
        raise mixing_kernels.PackageNotFoundError(package)

    def imported(name):
        if name in made.broken:
            raise ImportError(f"no {name} here")
        return made

    monkeypatch.setattr(mixing_kernels, "import_module", imported)  # not the real one, which others import by, too
    monkeypatch.setattr(mixing_kernels, "version", there)
    monkeypatch.setattr(mixing_kernels, "_serves", lambda x: mixing_kernels._settings["on"])
    mixing_kernels._found.cache_clear()
    yield made
    mixing_kernels._found.cache_clear()


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_an_operator_of_fla_is_given_what_its_rule_is(name, begins, stand_ins):
    tensors = tensors_of(name, sum(LENGTHS))
    initial = torch.randn(len(LENGTHS), 2, 16, 24) if begins else None
    want = RULES[name](tensors, LENGTHS, initial)
    got = in_kernels(RULES[name], name, tensors[0])(tensors, LENGTHS, initial)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert stand_ins.calls == [name]


@pytest.mark.parametrize("without", [(), ("causal-conv1d",), ("fla-core",)])
@pytest.mark.parametrize("taps, n, first", [(2, 16, 0), (4, 16, 8), (3, 16, 3), (5, 16, 0), (3, 12, 0)])
def test_a_convolution_is_in_the_first_package_that_takes_it(taps, n, first, without, stand_ins):
    """One takes 2 to 4 taps of channels in eights, which a part of wider features is copied for where it has to be."""
    for package in without:
        del stand_ins.versions[package]
    wide, weight, bias = torch.randn(2, 9, 24).bfloat16(), torch.randn(n, taps).bfloat16(), torch.randn(n).bfloat16()
    x = wide[..., first : first + n]
    y = convolved(x, weight, bias, (9, 9), True)
    takes = (taps <= 4 and n % 8 == 0 and "causal-conv1d" not in without) or "fla-core" not in without
    assert (y is not None) == takes
    if y is not None:
        want = convolution_of(x.reshape(1, 18, n), weight, bias, (9, 9), "silu").view(x.shape)
        torch.testing.assert_close(y, want)
        eights = taps <= 4 and n % 8 == 0 and "causal-conv1d" not in without
        assert stand_ins.calls == ["causal_conv1d" if eights else "convolution"]


PACKAGES = {
    "fla-core": ({"qwen3.5": "gated_delta_rule", "granite4": "simple_gla", "nemotron-h": "simple_gla"}, "convolution"),
    "all": ({"qwen3.5": "gated_delta_rule", "granite4": "ssd", "nemotron-h": "ssd"}, "causal_conv1d"),
}
"""Packages that are there -> kind of a model -> its kernel for whole texts; that of its convolution."""


@pytest.mark.parametrize("packages", PACKAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_learns_what_it_does_without_the_packages(kind, packages, stand_ins):
    if packages != "all":
        stand_ins.versions = {packages: VERSIONS[packages]}
    rules, convolution = PACKAGES[packages]
    model = tiny(kind)
    whole, begun = collate(documents_of(LENGTHS)), collate(documents_of((9, 30, 12, 12)), [(7, 2)])

    def losses(batch):
        stand_ins.calls.clear()
        loss = loss_sum(model, batch)
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return loss.detach(), gradients

    def same(batch, called):
        in_kernels = losses(batch)
        assert set(stand_ins.calls) == called
        with without_kernels():
            torch.testing.assert_close(in_kernels, losses(batch), rtol=1e-3, atol=1e-4)
            assert not stand_ins.calls

    rule = rules.get(kind)
    same(whole, {convolution, rule} - {None})
    with_states = {"ssd": "simple_gla"}.get(rule, rule)
    same(begun, {with_states} - {None})  # some go on from what lies before them


def test_texts_of_lengths_that_were_generated_before_can_be_trained_on():
    for kept in (mixing_kernels._boundaries, mixing_kernels._numbers):
        with torch.inference_mode():
            made = kept((5, 4, 3), torch.device("cpu"))
        x = torch.ones(made.shape, requires_grad=True)
        (x * kept((5, 4, 3), torch.device("cpu"))).sum().backward()  # which saves it
        assert made.flatten().tolist() == x.grad.flatten().tolist()
    assert made.tolist() == [[0] * 5 + [1] * 4 + [2] * 3]


def test_single_tokens_models_in_fp32_and_machines_without_it_take_plain_torch(stand_ins, monkeypatch):
    name, tensors = "simple_gla", tensors_of("simple_gla", 3)
    rule = in_kernels(_scan, name, tensors[0])
    assert rule is not _scan
    rule(tensors, (1, 1, 1), None)
    assert not stand_ins.calls
    for unusable in ("0.3.2", "unknown"):
        mixing_kernels._found.cache_clear()
        stand_ins.versions["fla-core"] = unusable
        assert in_kernels(_scan, name, tensors[0]) is _scan
    stand_ins.versions["mamba-ssm"] = "2.2.6.post3"
    per_head = [torch.zeros(2)] * 3
    assert scan_of_whole_texts(tensors[0], *per_head, 0.0) is None, "older than asked for"
    monkeypatch.undo()
    x = tensors[0].bfloat16()
    assert in_kernels(_scan, name, x) is _scan and convolved(x, x, None, (3,), False) is None, "on a CPU"


def test_a_package_that_cannot_be_imported_is_named_once(stand_ins):
    stand_ins.broken.append("causal_conv1d")
    x, weight = torch.zeros(1, 3, 8), torch.zeros(8, 4)
    with pytest.warns(UserWarning, match="causal-conv1d 1.7.0 is not used, as it cannot be imported here"):
        convolved(x, weight, None, (3,), False)
    convolved(x, weight, None, (3,), False)
    assert stand_ins.calls == ["convolution"] * 2


@pytest.mark.parametrize("taps, silu", [(2, False), (3, True), (4, True)])
def test_the_reference_of_causal_conv1d_computes_what_plain_torch_does(taps, silu, stand_ins, monkeypatch):
    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", ModuleType("causal_conv1d_cuda"))  # compiled
    package = pytest.importorskip("causal_conv1d.causal_conv1d_interface")
    if "seq_idx" not in inspect.signature(package.causal_conv1d_ref).parameters:
        pytest.skip("this version's reference takes no seq_idx")
    monkeypatch.setattr(stand_ins, "causal_conv1d_fn", package.causal_conv1d_ref)
    made = [torch.randn(1, sum(LENGTHS), 16), torch.randn(16, taps), torch.randn(16)]
    results = []
    for run in (convolved, None):
        x, weight, bias = (t.clone().requires_grad_() for t in made)
        if run is None:
            y = convolution_of(x, weight, bias, LENGTHS, "silu" if silu else None)
        else:
            y = run(x, weight, bias, LENGTHS, silu)
        y.square().sum().backward()
        results.append([y, x.grad, weight.grad, bias.grad])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
@pytest.mark.skipif(
    find_spec("fla") is None and find_spec("mamba_ssm") is None, reason="needs the package fla-core or mamba-ssm"
)
def test_the_kernels_compute_what_plain_torch_does_in_the_interpreter():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([sys.executable, ROOT / "tests" / "kernel_runs.py"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    for kind, figures in json.loads(done.stdout).items():
        assert figures["kernels"], kind
        assert max(figures["off"].values()) < 1e-4, (kind, figures)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", RULES)
def test_an_operator_of_fla_computes_what_plain_torch_does(name):
    x = torch.zeros(1, device="cuda", dtype=torch.bfloat16)
    rule = in_kernels(RULES[name], name, x)
    if rule is RULES[name]:
        pytest.skip("needs the package fla-core")
    made = [*tensors_of(name, sum(LENGTHS), torch.bfloat16), torch.randn(len(LENGTHS), 2, 16, 24)]
    results = []
    for run in (rule, RULES[name]):
        *tensors, initial = (t.to("cuda").requires_grad_() for t in made)
        y, states = run(tensors, LENGTHS, initial)
        (y.square().sum() + states.square().sum()).backward()
        results.append([y, states, *(t.grad for t in (*tensors, initial))])
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() < 2e-2 * want.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_the_kernels_learns_what_it_does_in_plain_torch(kind):
    figures = compared(kind, torch.device("cuda"), torch.bfloat16)
    if not figures["kernels"]:
        pytest.skip("needs one of the packages fla-core, causal-conv1d and mamba-ssm")
    assert figures["off"]["loss"] < 1e-2 and max(figures["off"].values()) < 5e-2, figures
