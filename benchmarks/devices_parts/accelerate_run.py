"""LoRA with transformers and peft under accelerate's FSDP2, one process of torchrun: real tokens a second of its steps.

Padded micro-batches of four samples, the loss of a step divided by its targets, as transformers' trainer does both.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lit_gpt.data import store
from lit_gpt.data.batches import Order

_MICRO = 4
"""Samples of a micro-batch."""


def main(model_dir: Path, data_dir: Path, batch_size: int, n_steps: int) -> None:
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        state_dict_type="SHARDED_STATE_DICT",
    )
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), fsdp_plugin=plugin)
    torch.manual_seed(1337)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa")
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, lora)
    trained = [p for p in model.parameters() if p.requires_grad]
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.01))
    model.train()
    samples, _, _ = store.load(data_dir)
    order = Order(len(samples), batch_size * n_steps, 1337)
    rates = []
    for step in range(n_steps):
        rows = order.rows(step * batch_size, (step + 1) * batch_size)
        began = time.perf_counter()
        train_step(accelerator, model, optimizer, [samples[i] for i in rows])
        n_tokens = sum(len(samples[i][0]) for i in rows)
        rates.append(n_tokens / (time.perf_counter() - began))
    if accelerator.is_main_process:
        print(json.dumps({"tokens_per_sec": rates}), flush=True)


def train_step(accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer, rows: list) -> None:
    """Takes one step; each process takes every so-manieth sample."""
    n_targets = sum(int((labels[1:] != store.IGNORE).sum()) for _, labels in rows)
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    for at in range(0, len(mine), _MICRO):
        some = mine[at : at + _MICRO]
        longest = max(len(ids) for ids, _ in some)
        ids = torch.zeros(len(some), longest, dtype=torch.long)
        labels = torch.full_like(ids, store.IGNORE)
        for i, (tokens, targets) in enumerate(some):
            ids[i, : len(tokens)] = torch.from_numpy(tokens.astype("int64"))
            labels[i, : len(targets)] = torch.from_numpy(targets.astype("int64"))
        mask = torch.arange(longest) < torch.tensor([len(tokens) for tokens, _ in some])[:, None]
        logits = model(input_ids=ids.to(accelerator.device), attention_mask=mask.to(accelerator.device)).logits
        shifted = labels[:, 1:].flatten().to(logits.device)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), shifted, reduction="sum", ignore_index=store.IGNORE
        )
        accelerator.backward(loss * accelerator.num_processes / n_targets)
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    dist.destroy_process_group()
