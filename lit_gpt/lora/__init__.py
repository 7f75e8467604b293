"""Low-rank adaptation, https://arxiv.org/abs/2106.09685: y = W x + s B A x with W frozen.

`inject` swaps linear layers of a loaded model in place; `merge` folds the updates in and swaps them back.
"""

import torch
import torch.nn as nn

from lit_gpt.args import LoRAArgs
from lit_gpt.linear import Linear, LinearLayer
from lit_gpt.lora.layer import LoRALinear
from lit_gpt.model import GPT


def inject(model: GPT, args: LoRAArgs, begins: bool = True) -> None:
    """Wrap the chosen layers of `model`, in place, and freeze everything else.

    Args:
        begins: False where the updates of a run are put in next, so that first values need not be searched for.

    Raises:
        UserError: PiSSA is to begin on quantized weights.
    """
    q, k, v = model.config.qkv_sizes
    rows = {"query": (0, q), "key": (q, q + k), "value": (q + k, q + k + v)}
    blocks = [rows[name] for name in rows if getattr(args, f"lora_{name}")]
    for block in model.transformer.h:
        if blocks:
            block.attn.qkv = LoRALinear(block.attn.qkv, args, blocks, begins)
        if args.lora_projection:
            block.attn.proj = LoRALinear(block.attn.proj, args, begins=begins)
        if args.lora_mlp:
            for parent, name, linear in linear_layers(block.mlp):
                setattr(parent, name, LoRALinear(linear, args, begins=begins))
    if args.lora_head:
        model.lm_head = LoRALinear(model.lm_head, args, begins=begins)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trainable(name)


def trainable(name: str) -> bool:
    """Whether the parameter of this name belongs to the method: it is what is trained and what is saved."""
    return ".lora_" in name


@torch.no_grad()
def merge(model: GPT) -> None:
    """Add every update to its frozen weight, in fp32, and take the wrappers off: the names are the base's again.

    Adapted layers of a quantized base come out in the dtype of the embeddings.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, LoRALinear):
                continue
            linear = child.linear
            merged = child.merged().to(model.transformer.wte.weight.dtype)
            if not isinstance(linear, Linear):  # 4 or 8 bits have no room for an update: the layer leaves them
                bias, linear = linear.bias, Linear(linear.in_features, linear.out_features, device="meta")
                linear.weight, linear.bias = nn.Parameter(merged, requires_grad=False), bias
            elif linear.weight is model.transformer.wte.weight:  # a tied head moves away from the embeddings
                linear.weight = nn.Parameter(merged, requires_grad=False)
                model.config.tie_embeddings = False
            else:
                linear.weight.copy_(merged)
            setattr(parent, name, linear)


def linear_layers(module: nn.Module) -> list[tuple[nn.Module, str, LinearLayer]]:
    """(parent, attribute, layer) of every linear layer below `module`."""
    return [(m, n, c) for m in module.modules() for n, c in m.named_children() if isinstance(c, LinearLayer)]
