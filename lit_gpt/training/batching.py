"""How a run puts samples together for a forward pass, and whether it computes the prefixes that they share once."""

from functools import lru_cache

import numpy as np
import torch

from lit_gpt.args import TrainArgs
from lit_gpt.config import Config
from lit_gpt.data.packing import Packing
from lit_gpt.errors import UserError
from lit_gpt.layers.attention import Documents, Heads, attended, attended_backward, flash_can
from lit_gpt.layers.cpu_matmul import MISSING, matmul_dtype
from lit_gpt.model import GPT
from lit_gpt.parallel.shards import is_sharded
from lit_gpt.resources import total_memory

_BYTES_A_TOKEN = 24
"""Bytes of a token in a micro-batch: its id, where it is predicted, and the target, 8 bytes each."""


def packing_of(model: GPT, train: TrainArgs, device: torch.device, max_tokens: int | None = None) -> Packing:
    """Returns how samples are packed for `model` on `device`; to be called under the run's autocast.

    Args:
        max_tokens: tokens of a forward pass; None is what the arguments say.
    """
    up_to = share_up_to(model.config, train)
    if device.type == "cuda" and up_to:
        mixed, weight = torch.is_autocast_enabled("cuda"), model.transformer.wte.weight
        dtype = torch.get_autocast_dtype("cuda") if mixed else weight.dtype
        if (heads := model.attention_heads) and not can_share(heads, dtype, device):
            up_to = 0
    dtype = matmul_dtype(model.transformer.wte.weight)
    return Packing(max_tokens or micro_batch_tokens(train, device.type, dtype, is_sharded(model)), up_to)


def micro_batch_tokens(train: TrainArgs, device_type: str, dtype: torch.dtype, sharded: bool = False) -> int:
    """Returns the tokens of a forward pass: --micro_batch_tokens, or what keeps a device of this type busy.

    Args:
        device_type: cuda or cpu.
        dtype: of the matmuls. A CPU with fast ones in 16 bits is kept busy by more tokens, which take half the memory.
        sharded: each device keeps a part of every weight, and all of them are brought together in each pass.
    """
    if not train.packing:
        return 1  # a longer sample goes alone
    if train.micro_batch_tokens or device_type == "cuda":
        return train.micro_batch_tokens or 4096
    return 2048 if sharded else 896 if dtype.itemsize == 2 and dtype not in MISSING else 512


def require_room_for_a_step(lengths: np.ndarray, train: TrainArgs, n_samples: int) -> None:
    """Checks that the tokens of an optimizer step fit the memory: all of its micro-batches are there at once.

    Args:
        lengths: tokens of each sample of the training set.
        n_samples: samples of the whole run.

    Raises:
        UserError: they take more than this machine has.
    """
    n = min(train.batch_size, n_samples)
    n_tokens, room = round(n * float(lengths.mean())), total_memory()
    if n_tokens * _BYTES_A_TOKEN > room:
        raise UserError(
            f"--batch_size {train.batch_size:,}: a step of {n:,} samples, about {n_tokens:,} tokens, does not fit the "
            f"{room / 1e9:.0f} GB of memory of this machine; pass a smaller one"
        )


def share_up_to(config: Config, train: TrainArgs) -> int:
    """Returns the tokens of the longest samples that may share a prefix; 0 if none may.

    A shared prefix is computed once, so nothing in it may depend on the sample that continues it: no sliding window
    that is shorter than a sample, no LongRoPE frequencies of long samples, no NEFTune noise.
    """
    if not train.share_prefixes or not train.packing or train.neftune_alpha:
        return 0
    scaling = config.rope_scaling or {}
    limits = [config.block_size]
    if config.sliding_window:
        limits.append(config.sliding_window)
    if scaling.get("type") == "longrope":
        limits.append(scaling["original_max_position_embeddings"])
    return min(limits)


@lru_cache(maxsize=8)
def can_share(heads: Heads, dtype: torch.dtype, device: torch.device) -> bool:
    """Checks that attention with shared prefixes gives the same result on this GPU as without; says where it does not.

    torch says little about what its flash kernels do with segments that see no keys, and a run that learned something
    else would not show it; so both ways are tried on a few random tokens.
    """
    T, generator = 96, torch.Generator(device).manual_seed(0)
    kind = {"device": device, "dtype": dtype}
    qkv = torch.empty(T, sum(heads.sizes), **kind).normal_(generator=generator)
    if not flash_can(qkv, heads):
        return False
    dy = torch.empty(T, heads.sizes[0] // heads.head_size, heads.head_size, **kind).normal_(generator=generator)
    shared, alone = (Documents.of(*row).to(device) for row in (((32, 24, 8, 32), (2,)), ((56, 40, 32),)))
    twice = torch.tensor([*range(56), *range(32), *range(56, 96)], device=device)  # the prefix of each, as alone
    dy_alone = dy[twice]
    dy_alone[56:88] = 0  # counted in the first document
    try:
        y, *kept = attended(qkv, shared, heads)
        got = [y[twice], *attended_backward(dy, qkv, y, *kept, documents=shared, heads=heads)]
        y, *kept = attended(qkv[twice], alone, heads)
        gradients = attended_backward(dy_alone, qkv[twice], y, *kept, documents=alone, heads=heads)
        sums = [torch.zeros(T, *g.shape[1:], **kind).float().index_add_(0, twice, g.float()) for g in gradients]
        off = [float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(got, [y, *sums], strict=True)]
    except RuntimeError as e:
        print(f"Prefixes are not shared: {str(e).splitlines()[0]}")
        return False
    same = all(x < 0.03 for x in off)  # not if one is no number; 16 bits differ by 0.005
    if not same:
        print(f"Prefixes are not shared: on this GPU, the result would differ by {max(off):.1%}")
    return same
