"""What a run says of itself before it starts: parameters, operations, length."""

import copy
from collections.abc import Iterator

import torch

from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.data.store import Samples
from lit_gpt.methods import METHODS
from lit_gpt.model import GPT
from lit_gpt.parallel.shards import is_sharded
from lit_gpt.training.batching import micro_batch_tokens
from lit_gpt.training.flops import estimated_flops, measured_flops
from lit_gpt.training.length import length_of
from lit_gpt.training.optimizer import warmup_of


def description(
    model: GPT, data: Samples, args: FinetuneArgs, device: torch.device, done: tuple[int, int] = (0, 0)
) -> Iterator[str]:
    """Yields the lines that describe a run: parameters, samples, steps and operations.

    Args:
        data: training samples.
        done: optimizer steps, and their samples, of earlier processes of the run.
    """
    with torch.device("meta"):
        counted = GPT(copy.deepcopy(model.config))  # quantized weights would count by the bytes that hold them
        METHODS[args.method].inject(counted, args.method_args)
    trained, frozen = (
        sum(p.numel() for p in counted.parameters() if p.requires_grad is wanted) for wanted in (True, False)
    )
    yield f"Number of trainable parameters: {trained:,}"
    yield f"Number of non trainable parameters: {frozen:,}"
    train = args.train
    length = length_of(train, len(data), *done)
    n_samples, n_steps = length.n_samples, length.n_steps
    yield (
        f"Training {n_samples:,} samples = {n_samples / len(data):.2f} epochs in {n_steps:,} steps "
        f"of {train.batch_size}; {warmup_of(train, n_steps)} steps of warm-up"
    )
    longest = data.lengths.max()
    yield f"The longest training sample has {longest} tokens, the model has room for {model.config.block_size}"
    length = round(float(data.lengths.mean()))
    dtype = model.transformer.wte.weight.dtype
    n = max(1, micro_batch_tokens(train, device.type, dtype, is_sharded(model)) // length)
    size = f"(one forward and backward pass of {n} x {length} tokens, the mean length)"
    yield f"Estimated TFLOPs: {estimated_flops(counted, n, length) / 1e12:.2f} {size}"
    yield f"Measured TFLOPs: {measured_flops(counted, n, length) / 1e12:.2f} {size}"
