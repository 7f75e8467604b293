"""The kernels of flash-linear-attention: what they are given and when; on a GPU that has them, what they compute.

On the CPU a stand-in with the arguments of fla-core 0.4 to 0.6 computes each token by itself, as its papers say.
"""

import sys
from types import ModuleType

import pytest
import torch
from tiny import documents_of, tiny

from lit_gpt.data.batches import collate
from lit_gpt.layers import fla
from lit_gpt.layers.delta import _gated_delta
from lit_gpt.layers.mamba import _scan
from lit_gpt.training.loss import loss_sum

RULES = {"gated_delta_rule": _gated_delta, "simple_gla": _scan}
KINDS = {"qwen3.5": 2, "granite4": 2}
"""Kind of a model -> its layers with a state."""
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


@pytest.fixture
def stand_in(monkeypatch):
    """A package of our own in place of fla-core, for any device; returns the names of what is called."""
    calls = []

    def chunk_gated_delta_rule(q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens):
        assert scale == 1.0 and output_final_state and q.dim() == 4 and len(q) == 1
        calls.append("gated_delta_rule")
        return token_by_token(q, k, v, g, beta, initial_state=initial_state, cu_seqlens=cu_seqlens)

    def chunk_simple_gla(q, k, v, g, g_gamma=None, scale=None, initial_state=None, output_final_state=False,
                         cu_seqlens=None):  # fmt: skip
        assert scale == 1.0 and output_final_state and g_gamma is None
        calls.append("simple_gla")
        return token_by_token(q, k, v, g, None, initial_state=initial_state, cu_seqlens=cu_seqlens)

    for name, operator in {"gated_delta_rule": chunk_gated_delta_rule, "simple_gla": chunk_simple_gla}.items():
        module = ModuleType(name)
        setattr(module, operator.__name__, operator)
        monkeypatch.setitem(sys.modules, f"fla.ops.{name}", module)
    monkeypatch.setattr(fla, "version", lambda name: {"fla-core": "0.6.0"}[name])
    monkeypatch.setattr(fla, "_serves", lambda x: True)
    fla._operator.cache_clear()
    yield calls
    fla._operator.cache_clear()


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_an_operator_of_the_package_is_given_what_its_rule_is(name, begins, stand_in):
    tensors = tensors_of(name, sum(LENGTHS))
    initial = torch.randn(len(LENGTHS), 2, 16, 24) if begins else None
    want = RULES[name](tensors, LENGTHS, initial)
    got = fla.in_kernels(RULES[name], name, tensors[0])(tensors, LENGTHS, initial)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert stand_in == [name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_learns_what_it_does_without_the_package(kind, stand_in, monkeypatch):
    model = tiny(kind)
    batches = [collate(documents_of(LENGTHS)), collate(documents_of((9, 30, 12, 12)), [(7, 2)])]

    def losses():
        found = [loss_sum(model, batch) for batch in batches]
        for loss in found:
            loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return [loss.detach() for loss in found], gradients

    in_kernels = losses()
    n_states = sum(mixer not in ("attention", "none") for mixer in model.config.mixers)
    assert len(stand_in) == 2 * n_states * (1 + 2), "forward and recomputed; twice where a prefix goes before the rest"
    monkeypatch.setattr(fla, "_serves", lambda x: False)
    torch.testing.assert_close(in_kernels, losses(), rtol=1e-3, atol=1e-4)


def test_texts_of_lengths_that_were_generated_before_can_be_trained_on():
    with torch.inference_mode():
        kept = fla._boundaries((5, 4, 3), torch.device("cpu"))
    x = torch.ones(4, requires_grad=True)
    (x * fla._boundaries((5, 4, 3), torch.device("cpu"))).sum().backward()  # which saves it
    assert kept.tolist() == x.grad.tolist() == [0, 5, 9, 12]


def test_single_tokens_models_in_fp32_and_machines_without_it_take_plain_torch(stand_in, monkeypatch):
    name, tensors = "simple_gla", tensors_of("simple_gla", 3)
    in_kernels = fla.in_kernels(_scan, name, tensors[0])
    assert in_kernels is not _scan
    in_kernels(tensors, (1, 1, 1), None)
    assert not stand_in
    for unusable in ("0.3.2", "unknown"):
        fla._operator.cache_clear()
        monkeypatch.setattr(fla, "version", lambda name, unusable=unusable: unusable)
        assert fla.in_kernels(_scan, name, tensors[0]) is _scan
    monkeypatch.undo()
    assert fla.in_kernels(_scan, name, tensors[0].bfloat16()) is _scan, "on a CPU"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", RULES)
def test_the_kernels_compute_what_plain_torch_does(name):
    x = torch.zeros(1, device="cuda", dtype=torch.bfloat16)
    rule = fla.in_kernels(RULES[name], name, x)
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
