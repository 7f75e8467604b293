"""The registry of finetuning methods: how each changes a base model, and which arguments it takes."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lit_gpt.args import AdapterArgs, FullArgs, LoRARunArgs
from lit_gpt.methods import adapter, adapter_v2, full, lora
from lit_gpt.model import GPT


class Method(NamedTuple):
    """A finetuning method."""

    inject: Callable[..., None]
    """Function inject(model, args, init, part) that changes a base model in place and sets which parameters are
    trained. With init=False it may leave the new parameters uninitialized, since the values of a run are loaded next;
    with a part, it changes that part only, and all parts in turn are the whole."""
    args: type
    """Class of the method's arguments, from `lit_gpt.args`."""


METHODS: dict[str, Method] = {
    "lora": Method(lora.inject, LoRARunArgs),
    "adapter": Method(adapter.inject, AdapterArgs),
    "adapter_v2": Method(adapter_v2.inject, AdapterArgs),
    "full": Method(full.inject, FullArgs),
}
"""Name of a method, as in finetuned.json -> the method."""


def reads_base(args: LoRARunArgs | AdapterArgs | FullArgs) -> bool:
    """Returns whether `inject` computes with the base's weights, as PiSSA and DoRA do."""
    return getattr(args, "lora_dora", False) or getattr(args, "lora_init", None) == "pissa"


def trained_parameters(model: GPT) -> dict[str, Tensor]:
    """Returns the tensors that a run saves, by name: all parameters that require a gradient.

    A parameter with two names, such as a tied head, is listed under both. The initial factors of PiSSA are included,
    since a LoRA update that started from them is the difference to them.
    """
    parameters = {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    return parameters | {n: x for n, x in model.named_buffers() if lora.trainable(n)}
