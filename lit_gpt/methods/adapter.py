"""LLaMA-Adapter, https://arxiv.org/abs/2303.16199: the upper layers attend to a trained prompt through a gate.

A layer with an adapter attends to the sequence as before and, with a softmax of its own, to P trained vectors that
every token sees. Their keys and values come from the layer's own frozen projections; the keys are not rotated, since
the vectors have no position. The output of the second attention is multiplied by a trained gate for each head, which is
zero at first, and added (section 3.2; as in Lit-GPT, by the gate itself and not its tanh).

Shapes: B batch, T tokens, C n_embd, H query heads, G key/value heads, D head_size, P prompt vectors, R = H / G.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.args import AdapterArgs
from lit_gpt.config import Config
from lit_gpt.errors import UserError
from lit_gpt.layer_heads import kv_source
from lit_gpt.layers.attention import (
    Documents,
    Heads,
    attended,
    attended_backward,
    from_groups,
    rotated,
    rotated_back,
    split,
    to_groups,
)
from lit_gpt.layers.cpu_matmul import upcast
from lit_gpt.layers.self_attention import CausalSelfAttention, attend
from lit_gpt.methods.parts import within
from lit_gpt.model import GPT


class AdapterAttention(CausalSelfAttention):
    """An attention layer with a prompt and gates, which takes over the modules of `attn` under the same names.

    Prompt and gates are fp32 whatever the dtype of the base model, as small steps on 16-bit weights get lost in
    rounding. Keys and values of the prompt are computed at every call, since the prompt and the adapters of its
    projections may have changed.
    """

    def __init__(self, attn: CausalSelfAttention, args: AdapterArgs) -> None:
        nn.Module.__init__(self)  # the modules of attn are reused
        self.config, self.heads, self.stacked = attn.config, attn.heads, attn.stacked
        self.layer, self.source, self.is_source, self.norm_v = attn.layer, attn.source, attn.is_source, attn.norm_v
        self.qkv, self.proj, self.norm_q, self.norm_k = attn.qkv, attn.proj, attn.norm_q, attn.norm_k
        self.sinks, self.out_gate = attn.sinks, attn.out_gate
        like = {"device": attn.qkv.weight.device, "dtype": torch.float32}
        weight = torch.empty(args.adapter_prompt_length, attn.config.n_embd, **like)
        if not weight.is_meta:  # to draw on the meta device would import torch's compiler, for a second or two
            nn.init.normal_(weight)
        self.adapter_wte = nn.Embedding.from_pretrained(weight, freeze=False)
        self.gating_factor = nn.Parameter(torch.zeros(1, 1, attn.config.n_head, 1, **like))  # shape as in Lit-GPT

    def prompt(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the keys and values of the prompt, (1, G, P, D) each, in `dtype`."""
        _, k, v = self.split_heads(self.qkv(self.adapter_wte.weight.to(dtype).unsqueeze(0)))
        return k.to(dtype), v.to(dtype)

    def attended(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        read = _gated(q, *self.prompt(q.dtype), self.gating_factor, self.config)
        return super().attended(q, k, v, mask) + read

    def attended_packed(self, qkv: Tensor, cos: Tensor, sin: Tensor, documents: Documents) -> Tensor:
        k, v = (x[0].transpose(0, 1) for x in self.prompt(qkv.dtype))  # (P, G, D)
        gate = self.gating_factor.flatten()
        return _PromptedAttention.apply(qkv, cos, sin, k, v, gate, documents, self.heads, self.sinks)

    @torch.inference_mode(False)
    @torch.no_grad()
    def beside(self, dtype: torch.dtype) -> nn.Module:
        return _Prompt(*self.prompt(dtype), self.gating_factor.detach().clone(), self.config)


class _Prompt(nn.Module):
    """The gated attention to the prompt for decoding, with keys and values that are computed once."""

    def __init__(self, k: Tensor, v: Tensor, gate: Tensor, config: Config) -> None:
        super().__init__()
        self.k, self.v, self.gate, self.config = k, v, gate, config

    def forward(self, q: Tensor) -> Tensor:
        """Returns the gated attention of rotated queries (B, H, T, D) to the prompt, of the same shape."""
        return _gated(q, self.k.to(q.dtype), self.v.to(q.dtype), gate=self.gate, config=self.config)


def _gated(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, config: Config) -> Tensor:
    """Returns gate * attention of q (B, H, T, D) to all of k and v (1, G, P, D), in the dtype of q.

    Args:
        gate: (1, 1, H, 1).
    """
    B, _, T, _ = q.shape
    k, v = (x.expand(B, -1, -1, -1) for x in (k, v))
    seen = torch.ones(T, k.size(2), dtype=torch.bool, device=q.device)
    return (attend(q, k, v, mask=seen, config=config) * gate.transpose(1, 2)).to(q.dtype)


class _PromptedAttention(Function):
    """The autograd function of packed attention plus gated attention to the prompt, which the backward pass recomputes.

    Args:
        qkv: (T, sum(sizes)), as `attn.qkv` stacks it.
        cos, sin: (T, n) for n rotated channels of a head.
        prompt_k, prompt_v: (P, G, D).
        gate: (H,).
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # see `PackedAttention`
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, prompt_k: Tensor, prompt_v: Tensor, gate: Tensor,
        documents: Documents, heads: Heads, sinks: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Returns the output of attention, (T, H * D)."""
        qkv = rotated(qkv, cos, sin, heads.head_size, sum(heads.sizes[:2]) // heads.head_size)
        y, *kept = attended(qkv, documents, heads, sinks)
        q, k, v = upcast(split(qkv, heads)[0], prompt_k, prompt_v)
        p, _ = _prompt_probabilities(q, k, heads)
        read = from_groups(p @ v.transpose(0, 1), q)  # (T, H, D)
        ctx.documents, ctx.heads = documents, heads
        ctx.save_for_backward(qkv, cos, sin, prompt_k, prompt_v, gate, sinks, y, *kept)
        return (y + (read * gate[:, None]).to(y.dtype)).flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        qkv, cos, sin, prompt_k, prompt_v, gate, sinks, y, *kept = ctx.saved_tensors
        heads = ctx.heads
        dy = dy.view_as(y)
        q, k, v = upcast(split(qkv, heads)[0], prompt_k, prompt_v)
        p, slope = _prompt_probabilities(q, k, heads)  # (G, R * T, P)
        values = v.transpose(0, 1)  # (G, P, D)
        d_gate = (dy.float() * from_groups(p @ values, q)).sum((0, 2))
        d_read = to_groups((dy * gate[:, None]).to(q.dtype), k)  # (G, R * T, D)
        d_values = p.mT @ d_read
        dp = (d_read @ values.mT).float()
        ds = (dp - (dp * p).sum(-1, keepdim=True)) * p * heads.scale
        ds = (ds if slope is None else ds * slope).to(q.dtype)
        d_qkv = None
        if ctx.needs_input_grad[0]:  # not needed in the first layer with a prompt: no layer below it trains
            dq, dk, dv, *_ = attended_backward(dy, qkv, y, *kept, documents=ctx.documents, heads=heads, sinks=sinks)
            d_qkv = rotated_back(dq + from_groups(ds @ k.transpose(0, 1), q).to(dq.dtype), dk, dv, cos, sin)
        d_prompt = (x.transpose(0, 1).to(prompt_k.dtype) for x in (ds.mT @ to_groups(q, k), d_values))
        return d_qkv, None, None, *d_prompt, d_gate.to(gate.dtype), None, None, None


def _prompt_probabilities(q: Tensor, k: Tensor, heads: Heads) -> tuple[Tensor, Tensor | None]:
    """Returns the attention probabilities of the prompt, (G, R * T, P), and the derivative of the soft cap or None."""
    scores = (to_groups(q, k) @ k.permute(1, 2, 0)).float() * heads.scale
    slope = None
    if heads.softcap:
        scores = torch.tanh(scores / heads.softcap)
        slope, scores = 1 - scores.square(), scores * heads.softcap
    return scores.softmax(-1).to(q.dtype), slope


def inject(model: GPT, args: AdapterArgs, init: bool = True, part: str | None = None) -> None:
    """Adds a prompt to the attention of the upper layers of `model`, in place, and freezes everything else.

    Args:
        init: ignored, since the first values cost nothing; every method's `inject` takes it.
        part: the only part of the model that is changed, of `parts_of`; None is all of it.

    Raises:
        UserError: `adapter_start_layer` is above the last layer that can have a prompt.
    """
    last = max((i for i in range(model.config.n_layer) if _takes_prompt(model.config, i)), default=-1)
    if args.adapter_start_layer > last:
        raise UserError(
            f"--adapter_start_layer {args.adapter_start_layer} leaves nothing to train: "
            f"the last of the model's layers with keys and values of its own is {last}"
        )
    add_prompts(model, args, part)
    for name, parameter in model.named_parameters():
        if within(name, part):
            parameter.requires_grad = trainable(name)


def add_prompts(model: GPT, args: AdapterArgs, part: str | None = None) -> None:
    """Adds a prompt, in place, to the attention of the layers of a part from `adapter_start_layer` on.

    Layers without keys and values of their own get none.
    """
    for i, block in enumerate(model.transformer.h):
        is_above = i >= args.adapter_start_layer and _takes_prompt(model.config, i)
        if is_above and within(f"transformer.h.{i}", part):
            block.attn = AdapterAttention(block.attn, args)


def _takes_prompt(config: Config, layer: int) -> bool:
    """Returns whether a layer is attention with keys and values of its own, which are made of the prompt, too."""
    return config.mixer(layer) == "attention" and kv_source(config, layer) == layer


def trainable(name: str) -> bool:
    """Returns whether the parameter of this name belongs to the method, and is therefore trained and saved."""
    return ".adapter_wte." in name or name.endswith(".gating_factor")
