"""Updates of several LoRA runs over one copy of the base weights: each row of a batch gets those of its own run.

Letters: N tokens of all rows, r sum of the ranks of a layer's updates.
"""

import copy
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from lit_gpt.args import LoRAArgs
from lit_gpt.errors import UserError
from lit_gpt.layers.cpu_matmul import add_matmul, matmul
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.methods.lora import inject
from lit_gpt.methods.lora.layer import SMALLEST_NORM, LoRALinear
from lit_gpt.model import GPT

RunSpan = tuple[str | None, slice]
"""Name of a run, None for the base model, and the tokens of a batch that it answers."""


class Updates:
    """What a run adds to the output of one linear layer: low-rank updates and, with DoRA, other magnitudes."""

    def __init__(self, layer: LoRALinear, dtype: torch.dtype) -> None:
        factors = layer.factors()
        self.blocks, self.scaling = layer.blocks, layer.scaling
        self.A = torch.cat([A for A, _ in factors]).to(dtype)  # (r, in_features)
        self.Bs = [B.to(dtype) for _, B in factors]
        self.magnitudes: list[Tensor] = []
        """Factors of the output channels of each block, with DoRA; B has them already."""
        self.bias = layer.linear.bias
        if len(layer.lora_magnitude):
            weight = layer.linear.dequantize() + layer.delta()
            for i, (m, (start, stop)) in enumerate(zip(layer.lora_magnitude, self.blocks, strict=True)):
                factor = m / weight[start:stop].norm(dim=1).clamp(min=SMALLEST_NORM)
                self.magnitudes.append(factor.to(dtype))
                self.Bs[i] = (factors[i][1] * factor.unsqueeze(1)).to(dtype)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Changes the base's output y (n, out_features) for x (n, in_features), in place, into the run's."""
        for factor, (start, stop) in zip(self.magnitudes, self.blocks, strict=False):
            part = y[:, start:stop]
            without_bias = part if self.bias is None else part - self.bias[start:stop]
            part.addcmul_(without_bias, (factor - 1).to(y.dtype))
        h = matmul(x.to(y.dtype), self.A.T.to(y.dtype))  # (n, r)
        for (start, stop), B, part in zip(self.blocks, self.Bs, h.split([B.size(1) for B in self.Bs], 1), strict=True):
            add_matmul(y[:, start:stop], part, B.T.to(y.dtype), self.scaling)


class SharedLinear(LinearLayer):
    """A linear layer for rows of several runs.

    Args:
        linear: the base's layer.
        updates: name of a run -> its updates of this layer.
        spans: which tokens of the batch are whose; the caller changes the list in place before each pass.
    """

    def __init__(self, linear: LinearLayer, updates: Mapping[str, Updates], spans: Sequence[RunSpan]) -> None:
        super().__init__()
        self.linear, self.updates, self.spans = linear, updates, spans
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_no_grad(x)

    def forward_no_grad(self, x: Tensor) -> Tensor:
        y = self.linear.forward_no_grad(x)
        rows, out = x.flatten(0, -2), y.flatten(0, -2)  # (N, in_features), (N, out_features); out is a view of y
        for run, span in self.spans:
            if run is not None and run in self.updates:
                self.updates[run].add(rows[span], out[span])
        return y


@torch.no_grad()
def updates_of(model: GPT, args: LoRAArgs, trained: Mapping[str, Tensor], name: str) -> dict[str, Updates]:
    """Returns the updates of a run by the path of the layer that they are for; the model does not change.

    Args:
        model: the base model, whose weights the updates are added to.
        args: the run's arguments, `LoRARunArgs`.
        trained: the run's trained weights by name.
        name: the run, for messages.

    Raises:
        UserError: the run also replaces weights of the base model, or its updates are for another model.
    """
    if args.whole:
        raise UserError(
            f"the run {name} replaces whole weights of the base model ({args.whole[0]}), which runs that share one "
            "cannot: serve it alone"
        )
    shared = {id(x): x for x in chain(model.parameters(), model.buffers())}
    frozen = {p: p.requires_grad for p in model.parameters()}
    twin = copy.deepcopy(model, shared)  # modules of its own around the same weights
    inject(twin, args, init=False)
    for p, before in frozen.items():
        p.requires_grad = before
    layers = {path: m for path, m in twin.named_modules() if isinstance(m, LoRALinear)}
    wanted = {n: p for n, p in chain(twin.named_parameters(), twin.named_buffers()) if ".lora_" in n}
    for key in sorted(trained.keys() ^ wanted.keys())[:1]:
        raise UserError(f"the run {name} is of another model than the base: {key} is in one of them only")
    for key, x in trained.items():
        if x.shape != wanted[key].shape:
            raise UserError(f"the run {name} is of another model than the base: {key} has another shape")
        wanted[key].copy_(x)
    dtype = model.transformer.wte.weight.dtype
    return {path: Updates(layer, dtype) for path, layer in layers.items()}
