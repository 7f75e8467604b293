"""Newer families train as the older ones do: LoRA on a base in 4 bits, experts and other mixers too."""

import pytest
import torch
from conftest import ALL, ours_of, tiny_hf
from tiny import documents_of, gradients, tiny

from lit_gpt.args import LoRAArgs
from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.checkpoints.base import load_base
from lit_gpt.data.batches import collate
from lit_gpt.files import save_state
from lit_gpt.layers.quantize import quantizable, quantized
from lit_gpt.lightning import Fabric
from lit_gpt.methods import lora
from lit_gpt.training.loss import loss_sum

KINDS = ("granite", "seed-oss", "exaone4", "glm4", "hunyuan", "nemotron", "apertus", "lfm2", "qwen3.5", "gpt-oss")
KINDS += ("gemma4", "gemma4-moe", "glm4-moe", "llama4", "qwen3-next", "qwen3.5-moe", "granite4", "granite4-moe")
KINDS += ("nemotron-h", "nemotron-h-moe")


@pytest.mark.parametrize("kind", KINDS)
def test_lora_on_all_layers_trains_over_a_base_in_four_bits(kind):
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = tiny(kind, hidden_size=64, intermediate_size=64)
    for path in quantizable(model):
        layer = quantized(model.get_submodule(path), "bnb.nf4")
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer)
    lora.inject(model, LoRAArgs(lora_r=4, lora_dropout=0.0, **ALL))
    batch = collate(documents_of((20, 7, 33)))
    losses = []
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(6):
        loss = loss_sum(model, batch)
        found = gradients(model, loss)
        assert len(found) == len(trained) and all(g.isfinite().all() for g in found.values())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0], losses
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("kind", ["apertus", "glm4-moe"])
def test_constants_of_a_checkpoint_are_loaded_in_their_own_precision(kind, tmp_path):
    """Those of xIELU, and what counts in choosing experts: in 16 bits, other experts would be chosen."""
    theirs = tiny_hf(kind)
    model = ours_of(theirs, kind)
    save_state(model.state_dict(), tmp_path / WEIGHTS)
    model.config.to_json(tmp_path / CONFIG)
    loaded, _ = load_base(Fabric(accelerator="cpu", devices=1, precision="bf16-true"), tmp_path)
    for name, x in model.named_buffers():
        assert torch.equal(loaded.get_buffer(name), x), name
    assert any("mlp" in name for name, _ in model.named_buffers())
