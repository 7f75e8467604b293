"""Tiny models and samples that several tests share, and the plain computations that they compare with."""

from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F
from conftest import tiny_hf

from lit_gpt.config import Config
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.data.batches import collate
from lit_gpt.data.store import IGNORE, stack
from lit_gpt.model import GPT
from lit_gpt.training.loss import loss_sum

TINY = Config(
    name="tiny", n_layer=2, n_head=4, n_query_groups=2, n_embd=32, vocab_size=64, padding_multiple=8, block_size=64,
    norm="rms", mlp="gated", activation="silu", parallel_residual=False, rotary_percentage=1.0, intermediate_size=48,
)  # fmt: skip
LENGTHS = (7, 1, 33, 12, 12)  # shorter and longer than the windows of SHAPES; 33 is long for phi3-long


def tiny(kind, **overrides):
    """A model of ours of one of SHAPES, with random weights."""
    hf = tiny_hf(kind, **overrides)
    config = config_from_hf({**hf.config.to_dict(), "architectures": [type(hf).__name__]}, kind, "config.json")
    model = GPT(config).eval()
    for name, p in model.named_parameters():
        mean = float("norm" in name and "weight" in name and not config.norm_unit_offset)
        torch.nn.init.normal_(p, mean=mean * (p.dim() == 1), std=0.2)
    return model


def make_samples(n, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        length = int(rng.integers(4, 40))
        ids = rng.integers(1, 60, length).tolist()
        masked = int(rng.integers(0, length - 1))
        rows.append((ids, [IGNORE] * masked + ids[masked:]))
    return stack(rows)


def documents_of(lengths, seed=1):
    rng = np.random.default_rng(seed)
    samples = []
    for n in lengths:
        ids = rng.integers(0, 320, n).astype(np.int32)
        labels = np.where(rng.random(n) < 0.6, ids, IGNORE).astype(np.int32)
        samples.append((ids, labels))
    return samples


def plain_loss(model, samples):
    """Each document by itself, all logits at once, and torch's own loss."""
    total = torch.zeros(())
    for ids, labels in samples:
        logits = model(torch.from_numpy(ids.astype(np.int64))[None])[0].float()
        targets = torch.from_numpy(labels.astype(np.int64))
        total = total + F.cross_entropy(logits[:-1], targets[1:], reduction="sum", ignore_index=IGNORE)
    return total


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def losses_of_steps(model, batch, n=4):
    """Losses of steps on one batch, in each of which all weights that train have a gradient."""
    weights, losses = [p for p in model.parameters() if p.requires_grad], []
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(n):
        loss = loss_sum(model, batch)
        assert len(gradients(model, loss)) == len(weights)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def kept_by(model, batch):
    """Values that the forward pass of all blocks leaves for the backward pass, weights and adapters excepted."""
    storages, alive = {}, []
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes() // x.element_size()
            alive.append(storage)  # or its address may be another one's before the end
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden = model.hidden(batch.ids[None], documents=batch.documents)
    assert hidden.requires_grad
    return sum(storages.values())


def kept_a_token(model, n=64):
    """The same for each token of a document of which n are computed: the last one is a target and no more."""
    ((ids, _),) = documents_of((n + 1,))
    batch = collate([(ids, ids)])
    assert batch.n_computed == n
    return kept_by(model, batch) / n


def assert_same(model, samples, tolerance=1e-5):
    want_loss = plain_loss(model, samples)
    want = gradients(model, want_loss)
    got_loss = loss_sum(model, collate(samples))
    got = gradients(model, got_loss)
    torch.testing.assert_close(got_loss, want_loss, rtol=tolerance, atol=tolerance)
    assert got.keys() == want.keys() and got
    for name, g in got.items():
        size = want[name].abs().max() + 1e-6
        torch.testing.assert_close(g / size, want[name] / size, rtol=10 * tolerance, atol=tolerance, msg=name)


def deep(n_layer=3, **traits):
    """Returns a model with random weights that is TINY but for its depth and other traits."""
    torch.manual_seed(0)
    return GPT(Config(**{**asdict(TINY), "n_layer": n_layer} | traits))
