"""On a GPU adapters compute what they do on a CPU: packed, recorded as CUDA graphs, and while decoding."""

import copy

import numpy as np
import pytest
import torch
from gpu_steps import SHAPES, SIZES, batch_of, step

from lit_gpt.args import AdapterArgs
from lit_gpt.config import Config
from lit_gpt.generation.lockstep.decode import Decoder
from lit_gpt.layers.compiled import set_compile
from lit_gpt.methods import adapter, adapter_v2
from lit_gpt.model import GPT

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def make(kind, method):
    torch.manual_seed(0)
    model = GPT(Config(name=kind, **SIZES, **SHAPES[kind])).train()
    method.inject(model, AdapterArgs(adapter_start_layer=1))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and "adapter_wte" not in name:
                p += torch.randn_like(p) * (0.5 if "gating" in name else 0.05)
    return model


def on_gpu(model, dtype):
    """A copy there, what is frozen in `dtype`."""
    model = copy.deepcopy(model).cuda()
    for p in model.parameters():
        if not p.requires_grad:
            p.data = p.data.to(dtype)
    return model


@pytest.fixture(params=[False, True], ids=["plain", "compiled"])
def compiled(request):
    set_compile(request.param)
    yield
    set_compile(False)


@pytest.mark.parametrize("method", [adapter, adapter_v2])
@pytest.mark.parametrize("kind", ["llama", "gqa", "mqa", "neox", "qwen3", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_those_of_a_cpu(kind, method, dtype, compiled):
    torch.backends.cuda.matmul.allow_tf32 = False
    model, batch = make(kind, method), batch_of(100, 1, 33, 77, 20)
    want_loss, want = step(model, batch)
    loss, got = step(on_gpu(model, dtype), batch.to(torch.device("cuda")))
    tolerance = 1e-4 if dtype == torch.float32 else 6e-2
    torch.testing.assert_close(loss, want_loss, rtol=tolerance / 10, atol=0)
    for name, g in got.items():
        assert (g - want[name]).norm() <= tolerance * want[name].norm() + 1e-6, name


@pytest.mark.parametrize("method", [adapter, adapter_v2])
@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_a_recorded_step_is_the_plain_one(kind, method):
    from lit_gpt.data.packing import Packing
    from lit_gpt.training.graphs import Recorder, recorded_hidden
    from lit_gpt.training.loss import loss_sum

    set_compile(True)
    model, batch = on_gpu(make(kind, method), torch.bfloat16), batch_of(100, 33).to(torch.device("cuda"))
    want_loss, want = step(model, batch)
    hidden_of = recorded_hidden(model, Packing(256), np.array([100, 33]))
    assert isinstance(hidden_of, Recorder)
    for _ in range(2):
        model.zero_grad(set_to_none=False)
        loss = loss_sum(model, batch, hidden_of)
        (loss / batch.n_targets).backward()
        torch.testing.assert_close(loss.detach().float().cpu(), want_loss, rtol=1e-3, atol=0)
        for name, p in model.named_parameters():
            if p.requires_grad:
                assert (p.grad.float().cpu() - want[name]).norm() <= 2e-2 * want[name].norm() + 1e-6, name
    set_compile(False)


@pytest.mark.parametrize("method", [adapter, adapter_v2])
@pytest.mark.parametrize("n_rows", [1, 2])
@torch.inference_mode()
def test_kernels_and_graphs_of_decoding_have_the_prompts_part(method, n_rows):
    model = on_gpu(make("gqa", method).eval(), torch.float32)
    ids = torch.randint(0, 500, (n_rows, 14), generator=torch.Generator().manual_seed(1))
    want = model(ids.cuda())[:, 4:]
    for way in (("plain", False), ("kernels", False), ("kernels", True)):
        decoder = Decoder(model, n_rows, 14, *way)
        got = [decoder.prefill(ids[:, :5].tolist()).clone()]
        got += [decoder.step(ids[:, i].cuda()).clone() for i in range(5, 14)]
        assert (torch.stack(got, 1) - want).norm() < 1e-3 * want.norm(), way
