"""--recompute auto counts what a forward pass keeps: of the longest sample, in the bytes of the precision."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from jobs import DATA, MIDDLE, job_of, real_model

from lit_gpt.args import TrainArgs, ValidationArgs
from lit_gpt.data.batches import collate
from lit_gpt.data.packing import Packing, fullest
from lit_gpt.data.store import stack
from lit_gpt.layers import cpu_matmul
from lit_gpt.planning.devices import Device
from lit_gpt.planning.memory_items import blocks_recomputed, memory_items
from lit_gpt.planning.work import work_of
from lit_gpt.training.loader import BatchLoader
from lit_gpt.training.memory import WORKSPACE, block_bytes, blocks_to_recompute, cast_bytes, training_bytes

GPU = Device("a gpu", 24.0, 100.0)
WIDE = replace(MIDDLE, n_embd=256, head_size=64, intermediate_size=640)


def kept_bytes(model, batch):
    """Bytes that the forward pass of all blocks leaves for the backward pass under autocast, parameters excepted."""
    storages = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x):
        if x.untyped_storage().data_ptr() not in parameters:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(batch.ids[None], documents=batch.documents)
    assert hidden.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("method", ["lora", "adapter_v2"])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_in_mixed_precision_a_block_keeps_the_bytes_that_are_counted(method, parallel, again, monkeypatch):
    """Values in 16 bits, residuals in 32, and copies in 16 bits of weights that no method wraps: as on a GPU."""
    monkeypatch.setattr(cpu_matmul, "MISSING", frozenset())  # nothing is upcast, whatever this CPU multiplies fast
    kept = {}
    batch = collate([DATA[0][i] for i in fullest(DATA[0].computed, 400, 8)])
    for n_layer in (3, 4):
        model = real_model(job_of(method, replace(WIDE, parallel_residual=parallel, n_layer=n_layer)))
        model.n_recomputed = n_layer if again else 0
        kept[n_layer] = kept_bytes(model, batch)
    counted = block_bytes(model, len(batch.ids), 2, mixed=True)[again]
    assert kept[4] - kept[3] == pytest.approx(counted, rel=0 if again else 0.002)
    assert block_bytes(model, len(batch.ids), 4)[0] > 1.5 * counted  # as if all were in 32 bits


@pytest.fixture
def free(monkeypatch):
    """The free bytes of a GPU that is not there."""
    found = SimpleNamespace(n_bytes=0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (found.n_bytes, 2 * found.n_bytes))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    return found


@pytest.fixture(params=[False, True])
def mixed(request):
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", request.param)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield request.param
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


def test_as_few_blocks_are_recomputed_as_it_takes_in_this_precision(free, mixed):
    model, train = real_model(job_of()), TrainArgs()
    kept, input_ = block_bytes(model, 5000, 2 if mixed else 4, mixed)
    taken = WORKSPACE + training_bytes(model, train) + (cast_bytes(model) if mixed else 0)
    for missing, n in ((0, 0), (1, 2), (kept - input_, 2), (kept, 3), (10 * kept, 4)):
        free.n_bytes = taken + 4 * kept - missing
        assert blocks_to_recompute(model, train, 5000, torch.device("cuda")) == n


@pytest.mark.parametrize("train", [{"packing": False}, {"micro_batch_tokens": 64}])
def test_the_longest_sample_decides_where_it_has_a_forward_pass_of_its_own(free, train, capsys):
    ids = [*range(1, 201)] * 2
    data = stack([(ids, ids), (ids[:20], ids[:20]), (ids[:30], ids[:30])])
    model = real_model(job_of())
    loader = BatchLoader(model, data, TrainArgs(**train, share_prefixes=False), torch.device("cpu"), 3, torch.no_grad)
    loader.prepare()
    loader.device = torch.device("cuda")
    assert loader.most_tokens == 399
    kept, _ = block_bytes(model, 399, 4)
    free.n_bytes = WORKSPACE + training_bytes(model, loader.train) + 4 * kept - 1
    loader.prepare()
    assert model.n_recomputed == 2
    loader.device = torch.device("cpu")
    loader.shrink()
    said = capsys.readouterr().out
    assert "micro-batches of 399 tokens and all blocks recomputed" in said and "of 1 tokens" not in said


@pytest.mark.parametrize("train", [{"packing": False}, {"micro_batch_tokens": 64}])
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_the_plan_finds_as_many_as_the_run(train, precision):
    ids = [*range(1, 201)] * 2
    data = stack([(ids, ids), (ids[:20], ids[:20])])
    job = job_of(device=GPU, precision=precision, recompute="auto", **{"micro_batch_tokens": None} | train)
    work = work_of(data, data, job.train, ValidationArgs(), Packing(job.room), 3)
    model, chosen = job.model()
    assert work.largest == 399
    items = memory_items(job, model, chosen, work, 0)
    kept, _ = block_bytes(model, 399, 2, job.mixed)
    assert items["activations"] > 4 * kept
    taken = sum(items[name] for name in ("frozen weights", "trained weights", "gradients", "optimizer"))
    taken += items.get("weights cast to 16 bits", 0)
    small = replace(GPU, gib=(0.55e9 + taken + WORKSPACE + 4 * kept - 1000) / 1024**3)
    assert blocks_recomputed(replace(job, device=small), model, chosen, work) == 2
    large = replace(GPU, gib=(0.55e9 + taken + WORKSPACE + 4 * kept + 1000) / 1024**3)
    assert blocks_recomputed(replace(job, device=large), model, chosen, work) == 0


@pytest.mark.parametrize("train", [{}, {"packing": False}, {"offload_gradients": True}, {"compile": False}])
def test_a_step_is_recorded_only_for_micro_batches_that_fill_a_recording(train):
    assert TrainArgs(**train).records == (not train)
