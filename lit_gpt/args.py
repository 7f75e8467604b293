"""Arguments that several scripts share, as frozen dataclasses: each field is a command-line flag. Imports little."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_gpt.errors import UserError

Precision = Literal["32-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"]
Quantization = Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8", "bnb.int8-training", "int8", "fp8"]
Optimizer = Literal["adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit"]


@dataclass(frozen=True)
class LoRAArgs:
    """Which layers LoRA adapts, and by how much."""

    lora_r: int = 8
    """Rank of each update."""
    lora_alpha: float = 16
    """An update is scaled by lora_alpha / lora_r, or as --lora_scaling says."""
    lora_dropout: float = 0.05
    """Dropout on the input of the updates."""
    lora_query: bool = True
    """Adapt the query rows of attention."""
    lora_key: bool = False
    """Adapt the key rows of attention."""
    lora_value: bool = True
    """Adapt the value rows of attention."""
    lora_projection: bool = False
    """Adapt the output projection of attention."""
    lora_mlp: bool = False
    """Adapt all layers of the MLPs."""
    lora_head: bool = False
    """Adapt the output projection of the model."""
    lora_scaling: Literal["plain", "rslora"] = "plain"
    """rslora divides lora_alpha by the root of lora_r, so that high ranks learn as fast (arXiv:2312.03732)."""
    lora_init: Literal["kaiming", "pissa"] = "kaiming"
    """pissa trains the principal part of the weights and freezes the rest (arXiv:2404.02948); kaiming adds to them."""
    lora_dora: bool = False
    """Train a magnitude for each adapted output channel, too (arXiv:2402.09353); takes a third product a layer."""
    lora_plus_ratio: float = 1.0
    """The second matrix of an update learns so many times faster than the first one (arXiv:2402.12354)."""

    @property
    def scaling(self) -> float:
        """Factor of the updates."""
        return self.lora_alpha / (self.lora_r if self.lora_scaling == "plain" else math.sqrt(self.lora_r))

    def __post_init__(self) -> None:
        require("lora_r", self.lora_r, at_least=1)
        for name in ("lora_alpha", "lora_plus_ratio"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name} {getattr(self, name)} must be more than 0")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout {self.lora_dropout} must be at least 0 and less than 1")
        targets = ("query", "key", "value", "projection", "mlp", "head")
        if not any(getattr(self, f"lora_{t}") for t in targets):
            raise UserError(f"LoRA adapts nothing: set one of {', '.join(f'--lora_{t} true' for t in targets)}")


@dataclass(frozen=True)
class AdapterArgs:
    """Which layers read a learned prompt, and how long it is."""

    adapter_prompt_length: int = 10
    """Vectors in the prompt of a layer."""
    adapter_start_layer: int = 2
    """The first layer with a prompt, counted from 0."""

    def __post_init__(self) -> None:
        require("adapter_prompt_length", self.adapter_prompt_length, at_least=1)
        require("adapter_start_layer", self.adapter_start_layer, at_least=0)


@dataclass(frozen=True)
class FullArgs:
    """Full finetuning leaves nothing to choose."""


@dataclass(frozen=True)
class TrainArgs:
    """How training goes."""

    learning_rate: float = 3e-4
    """Peak, after the warm-up."""
    optimizer: Optimizer = "adamw"
    """AdamW, or bitsandbytes' with its state in 8 bits, or in memory that moves to the host where the GPU's is full
    (paged), or both."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """From the peak to 0 at the end of the run (constant: stays)."""
    warmup_steps: int = 100
    """Optimizer steps in which the learning rate rises linearly; at most a tenth of the run."""
    weight_decay: float = 0.01
    """AdamW's decay of trained matrices; biases, norms, scales and gates have none."""
    max_norm: float = 1.0
    """The gradient's norm is clipped to this; 0 clips nothing."""
    batch_size: int = 128
    """Samples per optimizer step."""
    micro_batch_size: int = 4
    """Samples that --max_iters and --eval_iters count as one iteration; a forward pass takes --micro_batch_tokens."""
    micro_batch_tokens: int | None = None
    """Tokens per forward pass: samples are laid end to end, without padding, until no other fits. Changes memory and
    speed, and not the result. 4096 on a GPU and 512 on a CPU if not given; a longer sample goes alone."""
    recompute: Literal["none", "auto", "all"] = "auto"
    """Which blocks compute their forward pass again in the backward pass, for less memory and a third more time: auto
    takes as many as it needs to fit the GPU."""
    compile: bool = True
    """On a GPU, compile norms, rotations, activations and dropout, and record the step as CUDA graphs: half a minute at
    the start of a run."""
    epochs: float | None = None
    """End after this many passes over the training set."""
    max_iters: int | None = None
    """End after micro_batch_size times this many samples; 50000 if neither epochs nor max_steps is given."""
    max_steps: int | None = None
    """End after this many optimizer steps."""
    log_interval: int = 1
    """Forward passes between log lines."""
    save_interval: int = 100
    """Optimizer steps between saves of the trained weights."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "log_interval", "save_interval"):
            require(name, getattr(self, name), at_least=1)
        for name in ("warmup_steps", "max_norm", "learning_rate", "weight_decay"):
            require(name, getattr(self, name), at_least=0)
        if self.micro_batch_tokens is not None:
            require("micro_batch_tokens", self.micro_batch_tokens, at_least=1)
        for name in ("epochs", "max_iters", "max_steps"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(f"--{name} {getattr(self, name)} trains nothing; it must be more than 0")

    def n_samples(self, per_epoch: int) -> int:
        """Samples that the run sees: the first limit reached ends it.

        Args:
            per_epoch: samples in the training set.
        """
        max_iters = self.max_iters
        if max_iters is None and self.epochs is None and self.max_steps is None:
            max_iters = 50_000
        limits = [
            self.epochs and max(1, round(self.epochs * per_epoch)),
            max_iters and max_iters * self.micro_batch_size,
            self.max_steps and self.max_steps * self.batch_size,
        ]
        return min(limit for limit in limits if limit is not None)


@dataclass(frozen=True)
class ValidationArgs:
    """When the loss on the validation set is measured."""

    eval_interval: int = 100
    """Optimizer steps between validations; the first and the last step of a run are always followed by one."""
    eval_iters: int | None = None
    """The first micro_batch_size times this many samples of the validation set are used; all if not given."""

    def __post_init__(self) -> None:
        require("eval_interval", self.eval_interval, at_least=1)
        if self.eval_iters is not None:
            require("eval_iters", self.eval_iters, at_least=1)


@dataclass(frozen=True)
class SourceArgs:
    """Where the rows come from."""

    data_file: Path | None = None
    """A local file to read instead of downloading one."""
    validation_file: Path | None = None
    """Rows for validation; a part of the rows is held out if not given."""
    data_file_url: str = ""
    """Where to download from."""
    data_file_name: str = ""
    """What to call the download, in the folder of the prepared data; it is not fetched again."""


@dataclass(frozen=True)
class PrepareArgs:
    """How rows become tokens."""

    prompt_style: str = "alpaca"
    """Name of the prompt style: alpaca, chatml or plain."""
    mask_inputs: bool = True
    """Train on the responses only."""
    max_seq_length: int | None = None
    """Longest sample in tokens; None is the model's own limit."""
    truncation: Literal["drop", "cut_end", "error"] = "drop"
    """What happens to longer samples."""
    test_split_fraction: float = 0.03865
    """Part of the rows that is held out for validation; unused with --validation_file."""
    seed: int = 42
    """Decides which rows are held out."""

    def __post_init__(self) -> None:
        if not 0 < self.test_split_fraction < 1:
            raise UserError(f"--test_split_fraction {self.test_split_fraction} must be between 0 and 1")
        if self.max_seq_length is not None:
            require("max_seq_length", self.max_seq_length, at_least=2)


@dataclass(frozen=True)
class SamplingArgs:
    """How tokens are drawn."""

    max_new_tokens: int = 50
    """Most tokens to generate; the end-of-sequence token ends a text earlier."""
    top_k: int | None = 200
    """Draw from the k most likely tokens only."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the most likely token."""
    seed: int = 1234
    """Decides the draws."""

    def __post_init__(self) -> None:
        require("max_new_tokens", self.max_new_tokens, at_least=1)
        require("temperature", self.temperature, at_least=0)
        if self.top_k is not None:
            require("top_k", self.top_k, at_least=1)


@dataclass(frozen=True)
class EvalArgs:
    """What is measured, and where the results go."""

    eval_tasks: tuple[str, ...] = ("arc_challenge", "piqa", "hellaswag", "hendrycksTest-*")
    """Names of tasks, groups or tags of lm-eval, also with * and ?; the names of 2023 work too."""
    task_data: dict[str, Path] | None = None
    """Local data: task -> JSON or JSONL file with rows as the hub's, or a folder with <task>.jsonl for each task."""
    task_path: Path | None = None
    """Your own tasks: a YAML file of lm-eval, or a folder with such files."""
    batch_size: int = 1
    """Sequences per forward pass; changes memory and speed, and not the result."""
    num_fewshot: int | None = None
    """Solved examples before each question; as the task says if not given."""
    limit: int | float | None = None
    """Questions per task, or if below 1 the part of them; all if not given."""
    bootstrap_iters: int = 100_000
    """Resamplings behind the standard errors."""
    save_filepath: Path | None = None
    """JSON file for the results, in lm-eval's schema."""
    log_samples: bool = False
    """Save each question with the model's answer, too."""
    apply_prompt_style: bool = False
    """Wrap each question in a prompt style: that of --prompt_style, else the one the model was finetuned with."""
    prompt_style: str | None = None
    """Name of the prompt style: alpaca, chatml or plain."""
    seed: int = 1234
    """Decides which solved examples are shown, and the draws of tasks that sample."""

    def __post_init__(self) -> None:
        require("batch_size", self.batch_size, at_least=1)
        require("bootstrap_iters", self.bootstrap_iters, at_least=0)
        if self.num_fewshot is not None:
            require("num_fewshot", self.num_fewshot, at_least=0)
        if self.limit is not None and self.limit <= 0:
            raise UserError(f"--limit {self.limit} evaluates nothing; it must be more than 0")
        if self.prompt_style is not None and not self.apply_prompt_style:
            raise UserError("--prompt_style does nothing without --apply_prompt_style true")


def require(name: str, value: float, at_least: float) -> None:
    """Raises: UserError if `value` is smaller."""
    if value < at_least:
        raise UserError(f"--{name} {value} must be at least {at_least}")
