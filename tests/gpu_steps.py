"""Models and batches for a GPU and for a CPU, and the loss and gradients of a step on either."""

import numpy as np

from lit_gpt.data.batches import collate
from lit_gpt.data.store import IGNORE
from lit_gpt.training.loss import loss_sum

SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 128, "vocab_size": 500, "padding_multiple": 8, "block_size": 512}
LLAMA = {"norm": "rms", "mlp": "gated", "activation": "silu", "parallel_residual": False, "rotary_percentage": 1.0,
         "intermediate_size": 352}  # fmt: skip
SHAPES = {
    "llama": LLAMA,
    "gqa": LLAMA | {"n_query_groups": 2},
    "mqa": LLAMA | {"n_query_groups": 1},
    "neox": {"qkv_bias": True, "proj_bias": True, "mlp_bias": True},
    "window": LLAMA | {"sliding_window": 40},
    "unrotated": LLAMA | {"unrotated_layers": [1]},
    "qwen3": LLAMA | {"qk_norm": "head", "head_size": 64},
    "two bases": LLAMA | {"sliding_window": 40, "sliding_layers": [0], "rope_base": 1e6, "rope_local_base": 1e4},
    "gemma2": LLAMA | {"activation": "gelu_tanh", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
                       "post_norm": True, "norm_unit_offset": True, "sliding_window": 40, "sliding_layers": [0]},
    "mixture": LLAMA | {"mlp": "moe", "n_expert": 4, "n_expert_per_token": 2},
}  # fmt: skip


def batch_of(*lengths, seed=0):
    """Returns a batch of documents of these lengths with random tokens, some of them without a target."""
    rng = np.random.default_rng(seed)
    samples = []
    for n in lengths:
        ids = rng.integers(0, 500, n).astype(np.int32)
        samples.append((ids, np.where(rng.random(n) < 0.6, ids, IGNORE).astype(np.int32)))
    return collate(samples)


def step(model, batch):
    """Returns the loss of a batch, and the gradients of its mean by name, in fp32 on the CPU."""
    model.zero_grad()
    loss = loss_sum(model, batch)
    (loss / batch.n_targets).backward()
    return loss.detach().float().cpu(), {
        n: p.grad.float().cpu() for n, p in model.named_parameters() if p.requires_grad
    }
