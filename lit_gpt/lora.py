"""Low-rank adaptation, https://arxiv.org/abs/2106.09685: y = W x + (alpha / r) B A x with W frozen.

`inject` swaps linear layers of a loaded model in place; `merge` folds the updates in and swaps them back.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.args import LoRAArgs
from lit_gpt.model import GPT


class LoRALinear(nn.Module):
    """A frozen linear layer plus one low-rank update per block of its output channels.

    The updates are fp32 whatever the layer's dtype, since small steps on 16-bit weights get lost in rounding; they are
    multiplied in the dtype of the input.

    Args:
        linear: the layer to wrap; any module with in_features, out_features and weight.
        args: rank, scale and dropout.
        blocks: (start, stop) of the output channels that get an update; None is one block, all of them.
    """

    def __init__(self, linear: nn.Linear, args: LoRAArgs, blocks: list[tuple[int, int]] | None = None) -> None:
        super().__init__()
        self.linear = linear
        self.blocks = blocks or [(0, linear.out_features)]
        self.scaling = args.lora_alpha / args.lora_r
        self.dropout = nn.Dropout(args.lora_dropout)
        like = {"device": linear.weight.device, "dtype": torch.float32}
        self.lora_A = nn.ParameterList(
            nn.Parameter(torch.empty(args.lora_r, linear.in_features, **like)) for _ in self.blocks
        )
        self.lora_B = nn.ParameterList(
            nn.Parameter(torch.empty(stop - start, args.lora_r, **like)) for start, stop in self.blocks
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A random and B zero, so that the update begins at nothing."""
        for A, B in zip(self.lora_A, self.lora_B, strict=True):
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))  # as nn.Linear does, and as the paper's own code
            nn.init.zeros_(B)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)  # (..., out_features)
        x = self.dropout(x)
        r = self.lora_A[0].size(0)
        down = F.linear(x, torch.cat(tuple(self.lora_A)).to(x.dtype)).split(r, dim=-1)  # one (..., r) a block
        updates = [F.linear(h, (B * self.scaling).to(h.dtype)) for h, B in zip(down, self.lora_B, strict=True)]
        if self.blocks == [(0, y.size(-1))]:
            return y + updates[0]
        return y + self.spread(updates)

    def spread(self, updates: list[Tensor]) -> Tensor:
        """The blocks' updates (..., stop - start) side by side, zeros between them, (..., out_features)."""
        pieces, end = [], 0
        for update, (start, stop) in zip(updates, self.blocks, strict=True):
            if start > end:
                pieces.append(update.new_zeros(*update.shape[:-1], start - end))
            pieces.append(update)
            end = stop
        if end < self.linear.out_features:
            pieces.append(updates[0].new_zeros(*updates[0].shape[:-1], self.linear.out_features - end))
        return torch.cat(pieces, dim=-1)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The update as one matrix, (out_features, in_features), fp32."""
        out = self.lora_A[0].new_zeros(self.linear.out_features, self.linear.in_features)
        for A, B, (start, stop) in zip(self.lora_A, self.lora_B, self.blocks, strict=True):
            out[start:stop] = (B @ A) * self.scaling
        return out


def inject(model: GPT, args: LoRAArgs) -> None:
    """Wrap the chosen layers of `model`, in place, and freeze everything else."""
    q, k, v = model.config.qkv_sizes
    rows = {"query": (0, q), "key": (q, q + k), "value": (q + k, q + k + v)}
    blocks = [rows[name] for name in rows if getattr(args, f"lora_{name}")]
    for block in model.transformer.h:
        if blocks:
            block.attn.qkv = LoRALinear(block.attn.qkv, args, blocks)
        if args.lora_projection:
            block.attn.proj = LoRALinear(block.attn.proj, args)
        if args.lora_mlp:
            for parent, name, linear in linear_layers(block.mlp):
                setattr(parent, name, LoRALinear(linear, args))
    if args.lora_head:
        model.lm_head = LoRALinear(model.lm_head, args)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trainable(name)


def trainable(name: str) -> bool:
    """Whether the parameter of this name belongs to the method: it is what is trained and what is saved."""
    return ".lora_" in name


@torch.no_grad()
def merge(model: GPT) -> None:
    """Add every update to its frozen weight, in fp32, and take the wrappers off: the names are the base's again."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, LoRALinear):
                continue
            linear = child.linear
            merged = (linear.weight.float() + child.delta()).to(linear.weight.dtype)
            if linear.weight is model.transformer.wte.weight:  # a tied head moves away from the embeddings
                linear.weight = nn.Parameter(merged, requires_grad=False)
                model.config.tie_embeddings = False
            else:
                linear.weight.copy_(merged)
            setattr(parent, name, linear)


def linear_layers(module: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """(parent, attribute, layer) of every linear layer below `module`."""
    return [(m, n, c) for m in module.modules() for n, c in m.named_children() if isinstance(c, nn.Linear)]
