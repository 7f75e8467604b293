"""Arguments of training and validation."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from lit_gpt.args.require import require
from lit_gpt.errors import UserError

Optimizer = Literal["adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit"]
_Value = TypeVar("_Value")
_MOST = 1e15
"""Most of what is counted: with more, sums of the plan would be no numbers any longer."""


def _free(default: _Value) -> _Value:
    """Returns the default of a flag that is free to change when a run is resumed: it stays the same run."""
    made: Any = field(default=default, metadata={"free": True})
    return made


def free_flags(*kinds: type) -> set[str]:
    """Returns the names of the flags in these dataclasses that are free to change when a run is resumed."""
    return {f.name for kind in kinds for f in fields(kind) if f.metadata.get("free")}


@dataclass(frozen=True)
class RunArgs:
    """Arguments of a run as a whole: overwriting, resuming, its seed."""

    overwrite: bool = False
    """Replace the run that out_dir holds."""
    resume: bool | Path = False
    """true resumes the run in out_dir from its newest intact checkpoint, a path from that checkpoint."""
    allow_changes: bool = False
    """Resume even with arguments that make it another run."""
    prompt_style: str | None = None
    """Refuse data that was prepared in another style."""
    seed: int = 1337
    """Seed of the order of the samples, of dropout and of the initial weights."""


@dataclass(frozen=True)
class TrainArgs:
    """Arguments of training."""

    learning_rate: float = 3e-4
    """Peak learning rate, after the warm-up."""
    optimizer: Optimizer = "adamw"
    """AdamW, or bitsandbytes' AdamW with an 8-bit state, with a state that is paged to the host's memory where the
    GPU's is full, or both."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls from the peak to 0 at the end of the run; constant stays at the peak."""
    warmup_steps: int = 100
    """Optimizer steps in which the learning rate rises linearly; at most a tenth of the run."""
    weight_decay: float = 0.01
    """AdamW's weight decay of trained matrices; biases, norms, scales and gates have none."""
    max_norm: float = 1.0
    """Gradient clipping: largest norm of the gradient; 0 clips nothing."""
    neftune_alpha: float = 0.0
    """NEFTune: noise on the embeddings while training, 5 for instruction data (arXiv:2310.05914); 0 is none."""
    average_last: int = _free(0)
    """Also write the mean of the weights of the last N checkpoints to out_dir/averaged; 0 writes none."""
    batch_size: int = 128
    """Samples per optimizer step; gradients are accumulated over as many micro-batches as that takes."""
    micro_batch_size: int = 4
    """Samples that --max_iters and --eval_iters count as one iteration; --micro_batch_tokens sets the memory of a
    micro-batch."""
    micro_batch_tokens: int | None = _free(None)
    """Tokens per micro-batch, which is one forward and backward pass: samples are packed end to end, without padding,
    until no other fits. Changes memory and speed, not the result. 4096 on a GPU and 512 on a CPU (896 in 16 bits where
    it multiplies these fast, 2048 with fsdp) if not given; a longer sample has a micro-batch of its own."""
    recompute: Literal["none", "auto", "all"] = _free("auto")
    """Activation checkpointing (gradient checkpointing): which blocks recompute their forward pass in the backward
    pass, for less memory and a third more time; auto takes as many as it needs to fit the GPU."""
    offload_gradients: bool = _free(False)
    """Keep gradients in the host's memory from the backward pass to the optimizer's step, with the same result: full
    finetuning of a 7B model then fits 24 GB. Every micro-batch moves 2 bytes a weight back and forth."""
    compile: bool = _free(True)
    """On a GPU, compile norms, rotations, activations and dropout, and record the blocks as CUDA graphs: half a minute
    at the start of a run."""
    epochs: float | None = None
    """End after this many passes over the training set."""
    max_iters: int | None = None
    """End after micro_batch_size times this many samples; 50000 if neither epochs nor max_steps is given."""
    max_steps: int | None = None
    """End after this many optimizer steps."""
    logger: Literal["csv", "tensorboard", "wandb"] = _free("csv")
    """Logger of the figures besides metrics.csv: TensorBoard (in the run's folder) or Weights & Biases."""
    log_interval: int = _free(1)
    """Micro-batches between log lines."""
    save_interval: int = _free(100)
    """Optimizer steps between checkpoints; the last step of a run is always followed by one."""
    keep_last: int = _free(2)
    """How many of the latest checkpoints are kept, besides the best one."""
    packing: bool = _free(True)
    """Packing: lay samples end to end in a micro-batch, without padding, each attending to itself only; false gives
    each one a micro-batch of its own, with the same result."""
    share_prefixes: bool = _free(True)
    """Prefix sharing: compute a prefix that several samples of a micro-batch share once, such as the first lines of the
    prompt style; false computes it for each, with the same result."""
    max_time: str | None = _free(None)
    """Time limit of the run, HH:MM:SS, from the start of the process and over all resumed ones; the learning rate has
    reached its end when the time is up."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "log_interval", "save_interval", "keep_last"):
            require(name, getattr(self, name), at_least=1)
        for name in ("warmup_steps", "max_norm", "learning_rate", "weight_decay", "neftune_alpha", "average_last"):
            require(name, getattr(self, name), at_least=0)
        if self.micro_batch_tokens is not None:
            require("micro_batch_tokens", self.micro_batch_tokens, at_least=1)
        for name in ("epochs", "max_iters", "max_steps"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(f"--{name} {getattr(self, name)} trains nothing; it must be more than 0")
        for name in ("batch_size", "micro_batch_size", "micro_batch_tokens", "epochs", "max_iters", "max_steps"):
            if getattr(self, name) is not None and not getattr(self, name) <= _MOST:  # not a number, neither
                raise UserError(f"--{name} {getattr(self, name):.3g} must be at most {_MOST:.0e}")
        if self.average_last > self.keep_last:
            raise UserError(f"--average_last {self.average_last} needs --keep_last {self.average_last}")
        if self.max_time is not None and not self.max_seconds:
            raise UserError(f"--max_time {self.max_time}: expected HH:MM:SS, more than 00:00:00, such as 24:00:00")

    @property
    def records(self) -> bool:
        """Whether blocks may be recorded as CUDA graphs: compiled, packed, with all gradients on the device."""
        return self.compile and self.packing and not self.offload_gradients

    @property
    def max_seconds(self) -> float | None:
        """Seconds of `max_time`; None is no limit, and 0 stands for an invalid text."""
        if self.max_time is None:
            return None
        parts = self.max_time.split(":")
        if len(parts) != 3 or not all(part.isdigit() for part in parts) or max(map(int, parts[1:])) > 59:
            return 0.0
        hours, minutes, seconds = map(int, parts)
        return float(3600 * hours + 60 * minutes + seconds)

    def n_samples(self, per_epoch: int) -> int:
        """Returns the samples that the run sees: the first limit reached ends it.

        Args:
            per_epoch: samples in the training set.
        """
        return min(self.limits(per_epoch).values())

    def limits(self, per_epoch: int, step: int = 0, seen: int = 0) -> dict[str, int]:
        """Returns the samples after which each limit ends the run, by the name of its flag.

        Args:
            per_epoch: samples in the training set.
            step, seen: optimizer steps and samples that are done, where a run is resumed.
        """
        max_iters = self.max_iters
        if max_iters is None and self.epochs is None and self.max_steps is None:
            max_iters = 50_000
        limits = {
            "epochs": self.epochs and max(1, round(self.epochs * per_epoch)),
            "max_iters": max_iters and max_iters * self.micro_batch_size,
            "max_steps": self.max_steps and seen + (self.max_steps - step) * self.batch_size,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}


@dataclass(frozen=True)
class ValidationArgs:
    """Arguments of validation, and of what makes a checkpoint the best."""

    eval_interval: int = _free(100)
    """Optimizer steps between validations; there is also one before the first step and one after the last."""
    eval_iters: int | None = None
    """The first micro_batch_size times this many samples of the validation set are used; all if not given."""
    early_stopping_patience: int | None = _free(None)
    """Early stopping: validations in a row without a better checkpoint that end the run; none if not given."""
    best_task: str | None = None
    """Name of a task of lm-eval, or mini_helm for HELM's scenarios (docs/helm.md): the best checkpoint is the one with
    the highest score. Without it, it is the one with the lowest validation loss."""
    best_metric: str | None = None
    """Metric of that task, or accuracy, robustness or fairness of mini_helm; its first one if not given."""
    best_task_data: Path | None = None
    """Local data of that task, as for --task_data of the evaluation; of mini_helm, as for its --scenario_data."""
    best_task_path: Path | None = None
    """Your own task: a YAML file of lm-eval, or a folder of them; with mini_helm, HELM's list of what to run."""
    best_apply_prompt_style: bool = False
    """Wrap its questions in the prompt style of the data."""
    best_limit: int | None = None
    """Use the first N of its questions, all if not given; of each scenario of mini_helm N that HELM draws, or 20."""

    def __post_init__(self) -> None:
        if self.early_stopping_patience is not None:
            require("early_stopping_patience", self.early_stopping_patience, at_least=1)
        for name in ("best_metric", "best_task_data", "best_task_path", "best_limit"):
            if getattr(self, name) is not None and self.best_task is None:
                raise UserError(f"--{name} does nothing without --best_task")
        require("eval_interval", self.eval_interval, at_least=1)
        if self.eval_iters is not None:
            require("eval_iters", self.eval_iters, at_least=1)
