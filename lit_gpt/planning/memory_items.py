"""The memory that a run takes, item by item, by arithmetic on a model on the meta device.

What frozen and trained weights, gradients and the optimizer take follows from their shapes. What blocks keep is
counted (`lit_gpt/training/memory.py`), and checked with hooks on saved tensors. The last items are fitted: on a GPU to
what torch's allocator reserved on an H100 (benchmarks/results/gpu.txt), on a CPU to resident memory
(benchmarks/results/plan_cpu.txt).
"""

import os
from collections.abc import Iterator
from functools import cache

import torch

from lit_gpt.layer_heads import of_full_layers
from lit_gpt.layers.cpu_matmul import PART
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.quantize import QUANTIZATIONS
from lit_gpt.model import GPT
from lit_gpt.planning.devices import CONTEXT
from lit_gpt.planning.job import Job
from lit_gpt.planning.work import Work
from lit_gpt.training.loss import LOGITS
from lit_gpt.training.memory import (
    block_bytes,
    cast_bytes,
    gradient_bytes,
    lowest_trained,
    n_recomputed,
    state_bytes,
    trained_bytes,
    training_bytes,
)
from lit_gpt.training.optimizer import STATE_BYTES

_HELD_BACK = {"cuda": (0.6e9, 0.11), "cpu": (0.05e9, 0.7)}
"""Memory that the allocator keeps: bytes, and a share of the activations and temporary tensors."""
MARGIN = 0.03
"""Share of the device that is left free."""


def base_bytes(model: GPT, chosen: dict[str, LinearLayer], kind: str | None) -> int:
    """Returns the bytes of all that does not train.

    Args:
        chosen: layers that are quantized to `kind`.
    """
    packed = {id(layer.weight) for layer in chosen.values()}
    total = sum(p.numel() * p.element_size() for p in _frozen(model) if id(p) not in packed)
    total += sum(x.numel() * x.element_size() for x in model.buffers())
    return total + sum(QUANTIZATIONS[kind].n_bytes(layer) for layer in chosen.values() if kind)


def _frozen(model: GPT) -> Iterator[torch.nn.Parameter]:
    return (p for p in model.parameters() if not p.requires_grad)


def part_bytes(model: GPT, chosen: dict[str, LinearLayer], kind: str | None) -> tuple[int, int]:
    """Returns the bytes of the largest block's weights, and of all weights outside of the blocks.

    Args:
        chosen: layers that are quantized to `kind`.
    """
    packed = {id(layer.weight): QUANTIZATIONS[kind].n_bytes(layer) for layer in chosen.values()} if kind else {}

    def size(parameters: dict[int, int]) -> int:
        return sum(parameters.values())

    blocks = [
        {id(p): packed.get(id(p), p.numel() * p.element_size()) for p in block.parameters()}
        for block in model.transformer.h
    ]
    inside = {key for block in blocks for key in block}
    rest = {id(p): p.numel() * p.element_size() for p in model.parameters() if id(p) not in inside}
    return max(map(size, blocks)), size(rest)


def together_bytes(job: Job, model: GPT, chosen: dict[str, LinearLayer]) -> int:
    """Returns the bytes of the weights that a device has in whole where each keeps a part of all (fsdp).

    Two blocks are together at a time, that which computes and the next one, and all that is outside of the blocks; for
    one block, and for what is outside, also the gradients.
    """
    block, rest = part_bytes(model, chosen, job.quantize)
    trained = trained_bytes(model) / max(1, sum(p.numel() * p.element_size() for p in model.parameters()))
    return 2 * block + rest + int((block + rest) * trained)


def blocks_recomputed(job: Job, model: GPT, chosen: dict[str, LinearLayer], work: Work) -> int:
    """Returns how many blocks the run will recompute, with --recompute auto by the device's memory."""
    free = None
    if job.device.kind != "cpu":
        own = base_bytes(model, chosen, job.quantize) + trained_bytes(model)
        own += training_bytes(model, job.train, job.mixed)
        if job.sharded:
            own = own // job.n_devices + together_bytes(job, model, chosen)
        free = job.device.n_bytes - int(CONTEXT + own)
    tokens = max(work.room, work.largest)  # a sample that is longer than a forward pass has room for goes alone
    kept = block_bytes(model, tokens, job.compute_itemsize, mixed=job.mixed, quantized=chosen.values())
    return n_recomputed(model, job.train, kept, free)


def memory_items(job: Job, model: GPT, chosen: dict[str, LinearLayer], work: Work, n_again: int) -> dict[str, int]:
    """Returns the bytes of every item; their sum is what the device needs.

    Args:
        n_again: blocks that recompute their forward pass.
    """
    c, itemsize = job.config, job.compute_itemsize
    tokens = work.largest
    kept, input_ = block_bytes(model, tokens, itemsize, mixed=job.mixed, quantized=chosen.values())
    lowest = lowest_trained(model)
    again = max(0, n_again - lowest)
    activations = (c.n_layer - max(lowest, n_again)) * kept + again * input_ + (kept if again else 0)
    activations += input_  # what the last norm reads
    head = sum(p.numel() * 4 for p in model.lm_head.parameters() if p.requires_grad)
    rows = min(work.most_targets, max(16, LOGITS // c.padded_vocab_size))
    logits = rows * c.padded_vocab_size * (8 if itemsize == 4 else 12) + 2 * head
    host = host_bytes(job, model)
    items = {
        "frozen weights": base_bytes(model, chosen, job.quantize),
        "trained weights": trained_bytes(model),
        "gradients": gradient_bytes(model, job.train) + host["gradients"] * (job.device.kind == "cpu"),
        "optimizer": state_bytes(model, job.train.optimizer),
        "activations": activations,
        "logits": logits,
        "one block's work": _passing_bytes(job, chosen, tokens),
    }
    if job.mixed:
        items["weights cast to 16 bits"] = cast_bytes(model)
    constant, part = _HELD_BACK[job.device.kind]
    items["held back by the allocator"] = int(constant + part * (activations + items["one block's work"]))
    items["runtime"] = int(CONTEXT) if job.device.kind == "cuda" else resident_bytes()
    items["margin"] = int(MARGIN * job.device.n_bytes) if job.device.kind == "cuda" else 0
    return items


def host_bytes(job: Job, model: GPT) -> dict[str, int]:
    """Returns the bytes by item that a GPU's run keeps in the host's memory."""
    paged = STATE_BYTES[job.train.optimizer] == 0
    per_value = 2 if "8bit" in job.train.optimizer else 8
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "gradients": trained_bytes(model) if job.train.offload_gradients else 0,
        "optimizer": per_value * trained if paged else 0,
    }


def _passing_bytes(job: Job, chosen: dict[str, LinearLayer], tokens: int) -> int:
    """Returns the bytes of one block's temporary tensors: gradients, recomputed activations, dequantized weights."""
    c = job.config
    mlp = max(c.intermediate_size * (c.n_expert_per_token or 1) + c.shared_expert_size, c.dense_size)
    mlp = max(mlp, c.kv_shared_mlp_size)
    per_token = mlp + 4 * c.n_embd + max(sum(x.qkv_sizes) for x in (c, of_full_layers(c)))
    unpacked = 0
    if chosen:
        largest = max(layer.in_features * layer.out_features for layer in chosen.values())
        on_cpu = job.device.kind == "cpu"
        # bitsandbytes may unpack all of a weight, even there
        at_once = min(PART, largest) if on_cpu and job.quantize in ("int8", "fp8") else largest
        unpacked = at_once * (4 if on_cpu else 2 * job.weight_dtype.itemsize)
    return tokens * per_token * job.compute_itemsize + unpacked


def peak_of(items: dict[str, int], kind: str) -> int:
    """Returns the bytes that a run will report as its peak: reserved by torch on a GPU, all of the process on a CPU."""
    apart = {"margin"} | ({"runtime"} if kind == "cuda" else set())
    return sum(n for name, n in items.items() if name not in apart)


@cache
def resident_bytes() -> int:
    """Returns the resident bytes of this process before there is a model, or an estimate of them."""
    try:
        with open("/proc/self/statm", encoding="utf-8") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 450 * 10**6
