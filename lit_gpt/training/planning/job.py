"""What is planned: a finetune script's arguments, and a model of that shape without memory."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lit_gpt.args import TrainArgs, ValidationArgs
from lit_gpt.checkpoint import METHODS
from lit_gpt.config import Config
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.lit import CONFIG, LITGPT_CONFIG, read_config
from lit_gpt.data.packing import Packing
from lit_gpt.errors import UserError
from lit_gpt.linear import LinearLayer
from lit_gpt.model import GPT
from lit_gpt.quantize import quantizable
from lit_gpt.training.finetuning import Finetuning
from lit_gpt.training.packing import share_up_to
from lit_gpt.training.planning.devices import Device

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class Job:
    """A run that could be started."""

    method: str
    """Key of METHODS."""
    method_args: Any
    config: Config
    """Of the base model."""
    train: TrainArgs
    validation: ValidationArgs
    precision: str
    """Such as bf16-true."""
    quantize: str | None
    """Key of QUANTIZATIONS; None is the precision."""
    device: Device
    seed: int = 1337
    merge: bool = False
    """Whether the merged weights are written in the end."""

    @property
    def mixed(self) -> bool:
        return self.precision.endswith("-mixed")

    @property
    def weight_dtype(self) -> torch.dtype:
        return torch.float32 if self.mixed else DTYPES[self.precision.partition("-")[0]]

    @property
    def compute_itemsize(self) -> int:
        """Bytes of a value that the blocks hand on."""
        return DTYPES[self.precision.partition("-")[0]].itemsize

    @property
    def room(self) -> int:
        """Tokens of a forward pass, as `micro_batch_tokens` has it."""
        if not self.train.packing:
            return 1
        return self.train.micro_batch_tokens or (4096 if self.device.kind == "cuda" else 512)

    @property
    def packing(self) -> Packing:
        """How samples share a forward pass: on a GPU, prefixes are shared where flash attention does the rest."""
        flash = self.compute_itemsize == 2 and not self.config.attn_logit_softcapping
        return Packing(self.room, share_up_to(self.config, self.train) if flash or self.device.kind == "cpu" else 0)

    def model(self) -> tuple[GPT, dict[str, LinearLayer]]:
        """The model with the method in it, on the meta device, and the layers by name that --quantize means."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.weight_dtype)
        try:
            with torch.device("meta"):
                model = GPT(replace(self.config))
                chosen = {n: model.get_submodule(n) for n in quantizable(model)} if self.quantize else {}
                METHODS[self.method][0](model, self.method_args)
        finally:
            torch.set_default_dtype(before)
        return model, chosen


def job_of(asked: Finetuning, config: Config, precision: str, device: Device) -> Job:
    """What is asked for, with this model on this device."""
    return Job(
        method=asked.method,
        method_args=asked.method_args,
        config=config,
        train=asked.train,
        validation=asked.validation,
        precision=precision,
        quantize=asked.quantize,
        device=device,
        seed=asked.run.seed,
        merge=asked.merge,
    )


def default_precision(asked: str | None, method: str, device: Device) -> str:
    """As `make_fabric` chooses it, on another device."""
    if asked is not None or device.kind == "cpu":
        return asked or "32-true"
    bits = "bf16" if device.bf16 else "16"
    return f"{bits}-mixed" if method == "full" else f"{bits}-true"


def config_of(checkpoint_dir: Path) -> Config:
    """The shape of a model that is converted, downloaded, or known by the name of the folder that it will have.

    Raises:
        UserError: there is none, and no family knows the name.
    """
    if any((checkpoint_dir / name).is_file() for name in (CONFIG, LITGPT_CONFIG)):
        return read_config(checkpoint_dir)
    path = checkpoint_dir / "config.json"
    if path.is_file():
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as e:
            raise UserError(f"{path} is not valid JSON ({e}); download it again") from e
        return config_from_hf(values, checkpoint_dir.absolute().name, str(path))
    try:
        return Config.from_name("/".join(checkpoint_dir.absolute().parts[-2:]))  # some have another name on the hub
    except UserError as e:
        raise UserError(f"{checkpoint_dir} has no model, and there is no model to plan with of that name: {e}") from e
