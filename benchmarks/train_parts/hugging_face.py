"""Runs of Hugging Face's tools on the shared rows: transformers' Trainer, with peft for LoRA, and trl's, packed."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from train_parts.job import Job
from train_parts.record import Record
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback
from transformers import DataCollatorForSeq2Seq as PaddingCollator

IGNORE = -100
ATTENTION = ["q_proj", "v_proj"]
EVERYWHERE = [*ATTENTION, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Recording(TrainerCallback):
    """Notes each micro-batch of a trainer: what it holds when it is collated, its loss, and when it is done."""

    def __init__(self) -> None:
        self.record = Record()
        self.made: deque[tuple[int, int, int]] = deque()
        self.losses: deque[float] = deque()

    def around(self, trainer: Trainer) -> None:
        """Take a trainer's collator and loss in between."""
        collate, compute_loss = trainer.data_collator, trainer.compute_loss
        trainer.data_collator = lambda rows: self.collated(collate(rows))
        trainer.compute_loss = lambda *args, **kwargs: self.computed(compute_loss, *args, **kwargs)
        trainer.add_callback(self)

    def collated(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        packed = "attention_mask" not in batch
        n_tokens = batch["input_ids"].numel() if packed else int(batch["attention_mask"].sum())
        n_samples = int((batch["position_ids"] == 0).sum()) if packed else len(batch["input_ids"])
        self.made.append((n_tokens, n_samples, int((batch["labels"][:, 1:] != IGNORE).sum())))
        return batch

    def computed(self, compute_loss: Callable, *args: Any, **kwargs: Any) -> Any:
        """The trainer divides each sum by the targets of the whole step."""
        loss = compute_loss(*args, **kwargs)
        self.losses.append(float(loss.detach()) * float(kwargs["num_items_in_batch"]))
        return loss

    def done(self, *args: Any, **kwargs: Any) -> None:
        self.record.add(*self.made.popleft(), self.losses.popleft())

    on_substep_end = on_step_end = done


def run_peft(job: Job) -> None:
    """Padded micro-batches in random order, LoRA's weights in fp32 as peft makes them."""
    from peft import get_peft_model
    from transformers import TrainingArguments

    model = base(job) if job.targets == "full" else get_peft_model(base(job), lora(job))
    arguments = TrainingArguments(
        **settings(job),
        per_device_train_batch_size=job.micro_batch_size,
        gradient_accumulation_steps=job.batch_size // job.micro_batch_size,
    )
    collator = PaddingCollator(AutoTokenizer.from_pretrained(job.material.theirs), label_pad_token_id=IGNORE)
    go(Trainer(model, arguments, train_dataset=dataset(job), data_collator=collator))


def run_trl(job: Job) -> None:
    """Best-fit packed rows, one a micro-batch, eight a step; no recomputation, which is on unless one says so."""
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports] measured where it is installed

    arguments = SFTConfig(
        **settings(job),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        packing=True,
        max_length=job.max_seq_length,
        gradient_checkpointing=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(job.material.theirs)
    adapter = None if job.targets == "full" else lora(job)
    rows = dataset(job)
    go(SFTTrainer(base(job), arguments, train_dataset=rows, processing_class=tokenizer, peft_config=adapter))


def go(trainer: Trainer) -> None:
    recording = Recording()
    recording.around(trainer)
    trainer.train()
    recording.record.tell()


def base(job: Job) -> torch.nn.Module:
    dtype = {"32-true": torch.float32, "bf16-true": torch.bfloat16}[job.precision]
    return AutoModelForCausalLM.from_pretrained(job.material.theirs, dtype=dtype, attn_implementation="sdpa")


def lora(job: Job) -> LoraConfig:
    targets = EVERYWHERE if job.targets == "all" else ATTENTION
    return LoraConfig(
        r=job.r, lora_alpha=job.alpha, lora_dropout=job.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )


def dataset(job: Job) -> Dataset:
    rows = [{"input_ids": ids.tolist(), "labels": labels.tolist()} for ids, labels in job.material.rows]
    return Dataset.from_list(rows)


def settings(job: Job) -> dict[str, Any]:
    """Of both trainers: one epoch, a constant learning rate, nothing saved, the weights' own dtype."""
    return {
        "output_dir": str(job.folder / "trainer"),
        "num_train_epochs": 1,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "seed": job.seed,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
