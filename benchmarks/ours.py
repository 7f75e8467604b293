"""Our own model and training step, as the benchmarks use them: the one place to change when the library does."""

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from gpu_parts.context import Skip
from gpu_parts.documents import Document

from lit_gpt.args import LoRAArgs
from lit_gpt.config import Config
from lit_gpt.data.batches import Batch, micro_batches
from lit_gpt.data.packing import Packing
from lit_gpt.data.store import Samples
from lit_gpt.errors import UserError
from lit_gpt.layers.compiled import set_compile
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.quantize import quantized
from lit_gpt.methods.lora import inject
from lit_gpt.model import GPT
from lit_gpt.training.graphs import recorded_hidden
from lit_gpt.training.loss import loss_sum

__all__ = [
    "ALL",
    "QV",
    "adapt",
    "batch_loss",
    "batches_of",
    "build",
    "draw",
    "set_compile",
    "set_recompute",
    "step_runner",
]

QV = LoRAArgs(lora_r=8)
ALL = LoRAArgs(lora_r=16, lora_key=True, lora_projection=True, lora_mlp=True)


def build(config: Config, device: torch.device, dtype: torch.dtype, quantize: str | None = None, seed: int = 0) -> GPT:
    """A model with random weights, normal with standard deviation 0.02; norms are 1.

    Args:
        quantize: kind of the blocks' frozen weights; None keeps `dtype`.

    Raises:
        Skip: that kind does not exist, or not on this device.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = GPT(copy.deepcopy(config))
    finally:
        torch.set_default_dtype(before)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    if quantize is not None:
        quantize_blocks(model, quantize)
    return model


def quantize_blocks(model: GPT, kind: str) -> None:
    """Put the blocks' linear layers into `kind`, in place.

    Raises:
        Skip: that kind does not exist, or not on this device.
    """
    for parent in [module for block in model.transformer.h for module in block.modules()]:
        for name, child in list(parent.named_children()):
            if isinstance(child, LinearLayer):
                try:
                    setattr(parent, name, quantized(child, kind))
                except (UserError, KeyError) as e:
                    raise Skip(str(e).splitlines()[0]) from e


def set_recompute(model: GPT, wanted: bool) -> None:
    """Have all blocks compute their forward pass again in the backward pass, or none."""
    model.n_recomputed = model.config.n_layer if wanted else 0


def adapt(model: GPT, args: LoRAArgs) -> list[torch.nn.Parameter]:
    """Put LoRA on; returns what it trains."""
    inject(model, args)
    model.train()
    return [p for p in model.parameters() if p.requires_grad]


def batches_of(documents: Sequence[Document], max_tokens: int, shared: bool = False) -> list[Batch]:
    """The documents in micro-batches of at most `max_tokens` tokens, as the training loop makes them.

    Args:
        shared: compute the prefixes that they share once.
    """
    offsets = np.cumsum([0, *(len(ids) for ids, _ in documents)], dtype=np.int64)
    ids, labels = (np.concatenate(part) for part in zip(*documents, strict=True))
    return micro_batches(Samples(ids, labels, offsets), range(len(documents)), Packing(max_tokens, max_tokens * shared))


def step_runner(
    model: GPT, batches: Sequence[Batch], device: torch.device, recorded: bool = True
) -> Callable[[], float]:
    """One optimizer step over `batches` as the training loop takes it; returns the loss per target when called.

    Args:
        model: with LoRA on.
        recorded: replay the blocks as CUDA graphs, where they can be.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.01, fused=True)
    batches = [batch.to(device) for batch in batches]
    n_targets = max(1, sum(batch.n_targets for batch in batches))
    lengths = np.array([n for batch in batches for n in batch.documents.computed])
    most, shared = max(batch.n_computed for batch in batches), any(batch.documents.n_sharing for batch in batches)
    hidden_of = recorded_hidden(model, Packing(most, most * shared), lengths, recorded)

    def step() -> float:
        total = torch.zeros((), device=device)
        for batch in batches:
            loss = loss_sum(model, batch, hidden_of)
            (loss / n_targets).backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return total.item() / n_targets

    return step


def batch_loss(model: GPT, batch: Batch, device: torch.device) -> torch.Tensor:
    """The loss of a micro-batch, summed over its targets."""
    return loss_sum(model, batch.to(device))


def draw(model: GPT, prompt: list[int], n: int, compiled: bool) -> Iterator[int]:
    """`n` tokens, the most likely one each time, as they come."""
    from lit_gpt.generation.lockstep.batch import generate

    return generate(model, prompt, n, temperature=0, compile=True if compiled else None)
