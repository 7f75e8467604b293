"""What is planned: the arguments of a finetune script, and a model of that shape on the meta device."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lit_gpt.args import TrainArgs, ValidationArgs
from lit_gpt.args.cluster import Strategy
from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.args.folders import CONFIG, LITGPT_CONFIG
from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.checkpoints.configs import read_config
from lit_gpt.config import Config
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.data.packing import Packing
from lit_gpt.errors import UserError
from lit_gpt.families import config_for
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.quantize import quantizable
from lit_gpt.methods import METHODS
from lit_gpt.model import GPT
from lit_gpt.planning.devices import Device
from lit_gpt.records import read_object
from lit_gpt.training.batching import micro_batch_tokens, share_up_to

_DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class Job:
    """A run that could be started."""

    method: str
    """Key of METHODS."""
    method_args: Any
    config: Config
    """Configuration of the base model."""
    train: TrainArgs
    validation: ValidationArgs
    precision: str
    """Fabric's name of the precision, such as bf16-true."""
    quantize: str | None
    """Key of QUANTIZATIONS; None is the precision."""
    device: Device
    seed: int = 1337
    merge: bool = False
    """Whether the merged weights are written in the end."""
    grpo: GrpoArgs | None = None
    """How the model draws answers and learns from them; None learns from those of the data."""
    n_devices: int = 1
    """Devices that train together, on all machines."""
    strategy: Strategy = "auto"
    sharded: bool = False
    """Whether each device keeps a part of every weight (fsdp)."""
    link: str = "pcie"
    """The slowest link between any two of the devices."""
    has_reference: bool = False
    """Whether all rows are computed once under a reference, before the first step."""

    @property
    def mixed(self) -> bool:
        return self.precision.endswith("-mixed")

    @property
    def weight_dtype(self) -> torch.dtype:
        return torch.float32 if self.mixed else _DTYPES[self.precision.partition("-")[0]]

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of an activation."""
        return _DTYPES[self.precision.partition("-")[0]]

    @property
    def compute_itemsize(self) -> int:
        """Bytes of an activation."""
        return self.compute_dtype.itemsize

    @property
    def room(self) -> int:
        """Tokens of a forward pass."""
        return micro_batch_tokens(self.train, self.device.kind, self.compute_dtype, self.sharded)

    @property
    def packing(self) -> Packing:
        """How samples share a forward pass: on a GPU, prefixes are shared where flash attention does the rest."""
        flash = self.compute_itemsize == 2 and not self.config.attn_logit_softcapping
        return Packing(self.room, share_up_to(self.config, self.train) if flash or self.device.kind == "cpu" else 0)

    def model(self) -> tuple[GPT, dict[str, LinearLayer]]:
        """Returns the model with the method in it, on the meta device, and by name the layers that --quantize means."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.weight_dtype)
        try:
            with torch.device("meta"):
                model = GPT(replace(self.config))
                names = quantizable(model) if self.quantize else ()
                chosen = {n: m for n, m in model.named_modules() if n in names and isinstance(m, LinearLayer)}
                METHODS[self.method].inject(model, self.method_args)
        finally:
            torch.set_default_dtype(before)
        return model, chosen


def job_of(args: FinetuneArgs, config: Config, precision: str, device: Device, n_devices: int | None = None) -> Job:
    """Returns the job of a finetune script's arguments, with this model on this device.

    Args:
        n_devices: how many of them there are; None is what the arguments say.
    """
    n_devices = n_devices or (args.cluster.devices or 1) * args.cluster.num_nodes
    return Job(
        method=args.method,
        method_args=args.method_args,
        config=config,
        train=args.train,
        validation=args.validation,
        precision=precision,
        quantize=args.quantize,
        device=device,
        seed=args.run.seed,
        merge=args.merge,
        grpo=args.grpo,
        n_devices=n_devices,
        strategy=args.cluster.strategy,
        sharded=args.cluster.strategy == "fsdp" and n_devices > 1,
        link=args.plan.link or ("ethernet" if args.cluster.num_nodes > 1 else "pcie"),
        has_reference=args.preference is not None and args.preference.has_reference,
    )


def config_of(checkpoint_dir: Path) -> Config:
    """Returns the configuration of a model that is converted, downloaded, or known by the name of its folder.

    Raises:
        UserError: there is none, and no family knows the name.
    """
    if any((checkpoint_dir / name).is_file() for name in (CONFIG, LITGPT_CONFIG)):
        return read_config(checkpoint_dir)
    path = checkpoint_dir / "config.json"
    if path.is_file():
        return config_from_hf(read_object(path), checkpoint_dir.absolute().name, str(path))
    try:
        return config_for("/".join(checkpoint_dir.absolute().parts[-2:]))  # some have another name on the hub
    except UserError as e:
        raise UserError(f"{checkpoint_dir} has no model, and there is no model to plan with of that name: {e}") from e
