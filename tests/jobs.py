"""Trainings that a plan is made for: the job, its data, and the model as it would be trained."""

from dataclasses import replace

import numpy as np
import torch

from lit_gpt.args import AdapterArgs, FullArgs, LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.config import Config
from lit_gpt.data.store import IGNORE, stack
from lit_gpt.methods import METHODS
from lit_gpt.model import GPT
from lit_gpt.planning.devices import Device
from lit_gpt.planning.job import Job

SIZES = {"n_layer": 4, "n_head": 4, "n_embd": 64, "vocab_size": 300, "padding_multiple": 4, "block_size": 512}
LLAMA = {"norm": "rms", "mlp": "gated", "activation": "silu", "parallel_residual": False, "intermediate_size": 160}
MIDDLE = Config(name="middle", **SIZES, **LLAMA)
CPU = Device("cpu", 16.0, 0.0, kind="cpu")
ARGS = {
    "lora": LoRAArgs(lora_r=2, lora_mlp=True),
    "adapter": AdapterArgs(adapter_prompt_length=2, adapter_start_layer=1),
    "adapter_v2": AdapterArgs(adapter_prompt_length=2, adapter_start_layer=0),
    "full": FullArgs(),
}


def samples_of(n, low=20, high=100, seed=0, vocab=290):
    """Returns n samples of random tokens, `low` to `high` of them, the first half without a target."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        ids = rng.integers(1, vocab, int(rng.integers(low, high))).tolist()
        rows.append((ids, [IGNORE] * (len(ids) // 2) + ids[len(ids) // 2 :]))
    return stack(rows)


DATA = samples_of(60), samples_of(9, seed=1)
"""Those to train on, and those to validate with."""


def job_of(method="lora", config=MIDDLE, device=CPU, quantize=None, precision="32-true", **train):
    """Returns a small job; `train` are flags of TrainArgs."""
    train = TrainArgs(**{"batch_size": 8, "micro_batch_tokens": 256, "epochs": 1, "recompute": "none", **train})
    return Job(method, ARGS[method], config, train, ValidationArgs(), precision, quantize, device)


def real_model(job):
    """Returns the model of a job with its weights and its method, ready to be trained."""
    torch.manual_seed(0)
    model = GPT(replace(job.config)).train()
    METHODS[job.method].inject(model, job.method_args)
    return model
