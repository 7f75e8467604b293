"""Models with LoRA beside those of peft: updates that matter, and the same ones in peft's layers."""

import torch

from lit_gpt.convert.peft import to_peft
from lit_gpt.methods import lora


def trainable(model):
    """Returns the parameters of a model that train, by name."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def move(model, std=0.05):
    """Changes what trains, as some training would; magnitudes stay positive."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(torch.randn_like(p) * std)


def state_of(model):
    """Returns what is saved of a run of LoRA, by name."""
    return {n: x.detach() for n, x in (*trainable(model).items(), *model.named_buffers()) if lora.trainable(n)}


def as_peft(theirs, model, args):
    """Returns transformers' model with our updates in peft's layers, of the plain kind or with magnitudes."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    state, settings = to_peft(model.config, args, state_of(model))
    peft = get_peft_model(theirs, LoraConfig(**settings | {"inference_mode": False}))
    assert not set_peft_model_state_dict(peft, state).unexpected_keys
    return peft


def close(got, want, tolerance=1e-5):
    """Asserts that two tensors are the same within a tolerance, relative to the largest value."""
    size = want.detach().abs().max()
    torch.testing.assert_close(got / size, want / size, rtol=tolerance, atol=tolerance)
