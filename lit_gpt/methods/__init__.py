"""The finetuning methods, by name: how each changes a base model, and by which arguments."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lit_gpt.args import AdapterArgs, FullArgs, LoRARunArgs
from lit_gpt.methods import adapter, adapter_v2, full, lora
from lit_gpt.model import GPT


class Method(NamedTuple):
    """A finetuning method."""

    inject: Callable[..., None]
    """Changes a base model in place and sets which parameters require a gradient: inject(model, args, init).
    With init=False the new parameters may stay without values, since those of a run are loaded next."""
    args: type
    """Class of its arguments, one of `lit_gpt.args`."""


METHODS: dict[str, Method] = {
    "lora": Method(lora.inject, LoRARunArgs),
    "adapter": Method(adapter.inject, AdapterArgs),
    "adapter_v2": Method(adapter_v2.inject, AdapterArgs),
    "full": Method(full.inject, FullArgs),
}
"""Name in finetuned.json -> the method."""


def trained_parameters(model: GPT) -> dict[str, Tensor]:
    """Those that require a gradient; one that goes by two names, as a tied head, under both. With them goes what LoRA
    started from, where it takes that to know what was learned."""
    parameters = {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    return parameters | {n: x for n, x in model.named_buffers() if lora.trainable(n)}
