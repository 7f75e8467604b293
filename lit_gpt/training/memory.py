"""What the forward pass keeps for the backward pass, and which blocks recompute it (activation checkpointing)."""

from collections.abc import Collection

import torch

from lit_gpt.args import TrainArgs
from lit_gpt.config import Config
from lit_gpt.layer_heads import of_layer, stacked_sizes
from lit_gpt.layers.linear import Linear, LinearLayer
from lit_gpt.methods import lora
from lit_gpt.model import GPT
from lit_gpt.parallel.shards import n_here
from lit_gpt.training.optimizer import STATE_BYTES

WORKSPACE = 2 * 1024**3
"""Bytes left for short-lived tensors: a block's gradients, the head's logits, the optimizer's step, fragmentation."""


def kept_values(config: Config) -> int:
    """Returns the values that a block keeps for each token while its weights are frozen, in the mean over all blocks.

    Both residuals, rotated queries, keys and values, what attention returns, and what the MLP's activation reads. A
    norm of queries and keys keeps what it reads, norms after keep what they read; a mixture of experts keeps the rows
    that it takes back, too, and those that it hands out where its experts train.
    """
    return round(sum(_kept_by_block(config, i) for i in range(config.n_layer)) / config.n_layer)


def _kept_by_block(c: Config, layer: int) -> int:
    """Returns the values that a block keeps for each token."""
    mlp, size = c.mlp_of(layer)
    values = c.n_embd + 3 * c.per_layer_input_size if c.per_layer_input_size else 0
    if c.mixer(layer) != "none":
        values += _kept_by_mixer(c, layer) + c.n_embd * (1 + c.post_norm)
    if mlp != "none":
        values += c.n_embd * (c.post_norm + (0 if c.parallel_residual else 1))
    if mlp != "moe":
        return values + size * (1 if mlp == "plain" else 2)
    ups = 1 if c.plain_experts else 2
    values += c.n_expert_per_token * (ups * size + 2 * (c.latent_size or c.n_embd)) + 2 * c.latent_size
    values += ups * c.shared_expert_size + (c.n_embd + 1) * c.shared_expert_gate
    return values + (2 * c.dense_size + 3 * c.n_embd) * c.dense_beside_experts  # with what norms after both read


def _kept_by_mixer(c: Config, layer: int) -> int:
    """Returns the values that what mixes the tokens of a block keeps for each of them.

    The rules of layers with a state are computed again in the backward pass: their arguments are kept, of the delta
    rule in fp32, and of Mamba-2 as the convolution leaves them.
    """
    kind = c.mixer(layer)
    if kind == "conv":
        return 8 * c.n_embd
    if kind == "delta":
        keys, _, values = c.delta_sizes
        shared = c.delta_value_heads // c.delta_key_heads
        return 5 * (2 * keys + values) + 2 * (2 * keys * shared + values) + 6 * values
    if kind == "mamba2":
        width = c.ssm_sizes[0]
        return 6 * sum(c.ssm_sizes) + 11 * width + c.ssm_heads
    q, k, v = of_layer(c, layer).qkv_sizes
    made = sum(stacked_sizes(c, layer))
    return q + k + v + q + made * (c.qk_norm != "none") + (3 * q if c.attention_gate else 0)


def kept_by_wrappers(model: GPT) -> float:
    """Returns the further values that a method's layers keep in a block for each token, by their `kept_values`.

    LoRA on per-layer inputs also keeps what it reads, which nothing else does.
    """
    c = model.config
    share = c.n_expert_per_token / c.n_expert if c.n_expert else 1.0  # a token goes through some of the experts
    layers = (of for block in model.transformer.h for of in block.named_modules())
    total = sum(getattr(m, "kept_values", 0) * (share if "mlp.experts." in name else 1.0) for name, m in layers)
    adapted = sum(name.endswith(".per_layer.gate_proj.lora_A.0") for name, _ in model.named_parameters())
    total += adapted * (c.n_embd + 3 * c.per_layer_input_size)
    return total / c.n_layer


def lowest_trained(model: GPT) -> int:
    """Returns the first block that the backward pass reaches; the blocks below keep nothing."""
    before = ("transformer.wte.", "transformer.per_layer.")  # which the first block reads
    if any(p.requires_grad for name, p in model.named_parameters() if name.startswith(before)):
        return 0
    trains = [any(p.requires_grad for p in block.parameters()) for block in model.transformer.h]
    return trains.index(True) if True in trains else model.config.n_layer


def trained_bytes(model: GPT) -> int:
    """Returns the bytes that this device keeps of all weights that train."""
    return sum(n_here(p) * p.element_size() for p in model.parameters() if p.requires_grad)


def checkpoint_bytes(model: GPT) -> int:
    """Returns the bytes of a checkpoint of the run: what is trained, and two states of the optimizer for each value."""
    starts = sum(x.numel() * x.element_size() for name, x in model.named_buffers() if lora.trainable(name))
    return 3 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad) + starts


def gradient_bytes(model: GPT, train: TrainArgs) -> int:
    """Returns the bytes of the gradients on the device; offloaded, the largest one and what is added to it."""
    if not train.offload_gradients:
        return trained_bytes(model)
    return 2 * max((n_here(p) * p.element_size() for p in model.parameters() if p.requires_grad), default=0)


def state_bytes(model: GPT, optimizer: str) -> int:
    """Returns the bytes of the optimizer's state on the device."""
    per_value = STATE_BYTES[optimizer]
    trained = (p for p in model.parameters() if p.requires_grad)
    return sum(n_here(p) * (2 * p.element_size() if per_value is None else per_value) for p in trained)


def cast_bytes(model: GPT) -> int:
    """Returns the bytes of the 16-bit copies of trained matrices, which autocast keeps from the forward pass on."""
    return 2 * sum(p.numel() for p in model.parameters() if p.requires_grad and p.dim() == 2)


def training_bytes(model: GPT, train: TrainArgs, mixed: bool = False) -> int:
    """Returns the bytes of gradients and optimizer state, and in mixed precision of the 16-bit copies."""
    copies = cast_bytes(model) if mixed else 0
    return gradient_bytes(model, train) + state_bytes(model, train.optimizer) + copies


def block_bytes(
    model: GPT, n_tokens: int, itemsize: int, mixed: bool = False, quantized: Collection[LinearLayer] = ()
) -> tuple[int, int]:
    """Returns the bytes that a block keeps of `n_tokens` tokens, and the bytes of its input, kept if it is recomputed.

    Args:
        itemsize: bytes of an activation; 2 in mixed precision.
        mixed: weights and residuals are in fp32.
        quantized: layers that will be quantized, and so keep no 16-bit copy, where `model` does not show that.
    """
    c = model.config
    kept = (kept_values(c) + kept_by_wrappers(model)) * itemsize * n_tokens
    if not mixed:
        return int(kept), c.n_embd * itemsize * n_tokens
    residuals = (1 if c.parallel_residual else 2) * c.n_embd * n_tokens
    kept += (4 - itemsize) * residuals + itemsize * _copied(model, {id(layer) for layer in quantized})
    return int(kept), c.n_embd * 4 * n_tokens


def _copied(model: GPT, quantized: set[int]) -> int:
    """Returns the frozen weights of the mean block of which autograd keeps a 16-bit copy: no method wraps them."""
    layers = [
        m
        for block in model.transformer.h
        for name, m in block.named_modules()
        if type(m) is Linear and not name.endswith(".linear") and id(m) not in quantized
    ]
    total = sum(layer.weight.numel() for layer in layers if not layer.weight.requires_grad)
    return round(total / model.config.n_layer)


def _free_memory(device: torch.device) -> int | None:
    """Returns the bytes of a GPU that tensors can still take; None for a CPU, whose memory is taken to be enough."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def blocks_to_recompute(model: GPT, train: TrainArgs, n_tokens: int, device: torch.device) -> int:
    """Returns how many blocks recompute their forward pass; to be called under the run's autocast.

    Args:
        n_tokens: tokens of the largest forward pass.
    """
    mixed, dtype = torch.is_autocast_enabled(device.type), model.transformer.wte.weight.dtype
    itemsize = (torch.get_autocast_dtype(device.type) if mixed else dtype).itemsize
    free = _free_memory(device)
    free = None if free is None else free - training_bytes(model, train, mixed)
    return n_recomputed(model, train, block_bytes(model, n_tokens, itemsize, mixed), free)


def n_recomputed(model: GPT, train: TrainArgs, kept: tuple[int, int], free: int | None) -> int:
    """Returns how many blocks, from the first one on, recompute their forward pass (activation checkpointing).

    Args:
        kept: bytes that one block keeps, and bytes of its input, as `block_bytes` returns them.
        free: bytes of the device for what all blocks keep, by which `--recompute auto` decides; None is enough.
    """
    n_layer = model.config.n_layer
    if train.recompute != "auto":
        return n_layer if train.recompute == "all" else 0
    if free is None:
        return 0
    lowest = lowest_trained(model)
    n = _fewest_recomputed(n_layer - lowest, *kept, free)
    return lowest + n if n else 0  # those below keep nothing as it is, and come first


def _fewest_recomputed(n_layer: int, kept: int, input_: int, free: int) -> int:
    """Returns how many of `n_layer` blocks must recompute so that what all blocks keep fits `free` bytes.

    Args:
        kept, input_: bytes that a block keeps, and bytes of its input, as `block_bytes` returns them.
    """
    missing = n_layer * kept - (free - WORKSPACE)
    if missing <= 0:
        return 0
    # one is there in full while it is computed again
    return min(n_layer, int(-(-missing // max(1, kept - input_))) + 1)
