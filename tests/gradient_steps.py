"""A small model with a method in it, its loss, and the gradients that step it, on the device or on the host."""

import torch
from tiny import deep

from lit_gpt.args import FullArgs, LoRAArgs, TrainArgs
from lit_gpt.lightning import Fabric
from lit_gpt.methods import full, lora
from lit_gpt.training.offload import make_gradients
from lit_gpt.training.optimizer import make_optimizer


def model_of(method="full", **traits):
    """Returns a model of two layers that trains by full finetuning, or by LoRA without dropout."""
    torch.manual_seed(0)
    model = deep(2, **traits)
    if method == "full":
        full.inject(model, FullArgs())
    else:
        lora.inject(model, LoRAArgs(lora_dropout=0.0))
    return model


def gradients_of(model, **settings):
    """Returns the gradients of a model with their optimizer, offloaded to the host unless `settings` say otherwise."""
    fabric = Fabric(accelerator="cpu", devices=1)
    train = TrainArgs(**{"offload_gradients": True, "learning_rate": 1e-2} | settings)
    optimizer = fabric.setup_optimizers(make_optimizer(model, train))
    return make_gradients(fabric, model, optimizer, train)


def loss_of(model):
    """Returns a loss that every parameter has a gradient of."""
    return model(torch.arange(24)[None]).logsumexp(-1).sum()
