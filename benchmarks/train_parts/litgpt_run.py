"""litgpt's run on the shared rows: its model, loss and order of operations (`fit` of litgpt/finetune/lora.py, full.py).

Samples are drawn in random order, four a micro-batch, padded to the longest of them; the loss is read after each.
"""

import random
from typing import Any

import litgpt  # pyright: ignore[reportMissingImports] measured where it is installed
import numpy as np
import torch
from lightning import Fabric
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable  # pyright: ignore[reportMissingImports] as above
from litgpt.utils import chunked_cross_entropy, load_checkpoint  # pyright: ignore[reportMissingImports] as above
from train_parts.job import Job
from train_parts.record import Record

IGNORE = -100


def run(job: Job) -> None:
    fabric = Fabric(devices=1, precision=job.precision)
    fabric.seed_everything(job.seed, verbose=False)
    with fabric.init_module(empty_init=False):
        model = whole(job) if job.targets == "full" else adapted(job)
    model = fabric.setup_module(model)
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=job.learning_rate))
    load_checkpoint(fabric, model, job.material.theirs / "lit_model.pth", strict=False)
    train(fabric, model, optimizer, job).tell()


def whole(job: Job) -> torch.nn.Module:
    """A model of which everything trains."""
    return litgpt.GPT(litgpt.Config.from_file(job.material.theirs / "model_config.yaml"))


def adapted(job: Job) -> torch.nn.Module:
    """One with LoRA, of which that trains."""
    everywhere = job.targets == "all"
    config = Config.from_file(
        job.material.theirs / "model_config.yaml",
        lora_r=job.r,
        lora_alpha=job.alpha,
        lora_dropout=job.dropout,
        lora_query=True,
        lora_value=True,
        lora_key=everywhere,
        lora_projection=everywhere,
        lora_mlp=everywhere,
    )
    model = GPT(config)
    mark_only_lora_as_trainable(model)
    return model


def train(fabric: Fabric, model: Any, optimizer: Any, job: Job) -> Record:
    rows = job.material.rows
    random.Random(job.seed).shuffle(rows)
    model.max_seq_length = max(len(ids) for ids, _ in rows)
    model.train()
    accumulate = job.batch_size // job.micro_batch_size
    record = Record()
    for i, start in enumerate(range(0, len(rows), job.micro_batch_size), 1):
        chosen = rows[start : start + job.micro_batch_size]
        input_ids, targets = fabric.to_device(padded(chosen))
        is_accumulating = i % accumulate != 0
        with fabric.no_backward_sync(model, enabled=is_accumulating):
            logits = model(input_ids, lm_head_chunk_size=128)
            logits[-1] = logits[-1][..., :-1, :]
            loss = chunked_cross_entropy(logits, targets[..., 1:])
            fabric.backward(loss / accumulate)
        if not is_accumulating:
            optimizer.step()
            optimizer.zero_grad()
        n_targets = sum(int((labels[1:] != IGNORE).sum()) for _, labels in chosen)
        record.add(sum(len(ids) for ids, _ in chosen), len(chosen), n_targets, loss.item() * n_targets)
    return record


def padded(rows: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids, padded with 0, and labels, padded with IGNORE, (B, T) each."""
    shape = len(rows), max(len(ids) for ids, _ in rows)
    ids, targets = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORE)
    for i, (row_ids, row_labels) in enumerate(rows):
        ids[i, : len(row_ids)] = torch.from_numpy(row_ids.astype(np.int64))
        targets[i, : len(row_labels)] = torch.from_numpy(row_labels.astype(np.int64))
    return ids, targets
