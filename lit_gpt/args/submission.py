"""Arguments of a submission to the NeurIPS 2023 LLM Efficiency Challenge: what is packed, and what is refused."""

import re
from dataclasses import dataclass
from typing import Literal

from lit_gpt.args.require import require
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class SubmissionArgs:
    """Arguments of what a submission holds."""

    weights: Literal["fetch", "copy"] = "fetch"
    """fetch: the image downloads the base while it is built and merges the run into it; copy: the folder holds the
    merged model, which needs no network and is too large for most git repositories."""
    merge_base: Literal["16bit", "trained"] = "16bit"
    """Weights that a LoRA run is merged into: the base's own, or those that a quantized training saw."""
    base_repo: str | None = None
    """org/name of the base on the Hugging Face hub; what the checkpoint says of itself if not given."""
    base_revision: str | None = None
    """Commit of the base on the hub; that of the download if not given."""
    base_image: str = "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-devel"
    """Image that both Dockerfiles begin with; it has to bring Python, CUDA, a C compiler and torch >= 2.8."""
    base_digest: str | None = None
    """Digest of that image (sha256: and 64 digits), which pins it; by its tag alone it can change."""
    serve_quantize: Literal["bnb.nf4", "bnb.nf4-dq", "bnb.int8", "int8", "fp8"] | None = None
    """Quantize the served weights, where the merged model does not fit the GPU in 16 bits."""
    train_image: bool = True
    """Write Dockerfile.train and train.sh, which repeat the run."""
    hours: float = 24
    """Hours that train.sh may take, downloads included."""
    prepare_command: str | None = None
    """How the data was prepared, where its record does not say: "scripts/prepare_json.py --json_path my.json"."""
    base_license: str | None = None
    """License of the base, where the toolkit does not know it."""
    data_license: str | None = None
    """License of the data, where the toolkit does not know it."""
    zip: bool = False
    """Also write submission.zip, of all files, into the folder."""
    overwrite: bool = False
    """Replace what output_dir holds."""

    def __post_init__(self) -> None:
        if self.base_digest is not None and not re.fullmatch(r"sha256:[0-9a-f]{64}", self.base_digest):
            raise UserError(f"--base_digest {self.base_digest} must be sha256: and 64 digits, as docker pull says it")
        if self.base_digest is not None and "@" in self.base_image:
            raise UserError(f"--base_image {self.base_image} has a digest of its own; leave out --base_digest")
        if self.base_repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.base_repo):
            raise UserError(f"--base_repo {self.base_repo} is no model of the hub; names look like org/name")
        if not re.fullmatch(r"[\w./:@-]+", self.base_image):
            raise UserError(f"--base_image {self.base_image!r} is no name of an image")
        if self.base_revision is not None and not re.fullmatch(r"[\w./-]+", self.base_revision):
            raise UserError(f"--base_revision {self.base_revision!r} is no commit, tag or branch")
        require("hours", self.hours, above=0)

    @property
    def image(self) -> str:
        """The base image as a Dockerfile names it."""
        return f"{self.base_image}@{self.base_digest}" if self.base_digest else self.base_image


@dataclass(frozen=True)
class RefusalArgs:
    """Arguments of what is refused."""

    max_mb: float = 100
    """Most megabytes of the folder; GitHub takes no larger file."""
    max_sample_tokens: int = 2_048
    """Most tokens of a training sample, prompt and answer together: the challenge asks nothing longer."""
    allow_data: tuple[str, ...] = ()
    """Names of data sets that are packed although the challenge forbids them, such as alpaca."""
    allow_secrets: tuple[str, ...] = ()
    """Files of the submission that are not searched for secrets, such as data/my.json."""

    def __post_init__(self) -> None:
        require("max_mb", self.max_mb, above=0)
        require("max_sample_tokens", self.max_sample_tokens, at_least=1)


@dataclass(frozen=True)
class CheckArgs:
    """Arguments of the check of a submission."""

    builder: Literal["auto", "docker", "podman", "none"] = "auto"
    """What builds the image; none carries the steps of the Dockerfile out in a temporary folder, as auto does where
    neither docker nor podman runs."""
    base_dir: str | None = None
    """Folder of the converted base, which stands for the download where nothing is built."""
    fetch: bool = False
    """Carry out the steps that need a network, too, where nothing is built: pip's and the hub's downloads."""
    device: str | None = None
    """GPU on which the evaluation is to run, such as a100-40gb or rtx4090; this machine's if not given."""
    ready_minutes: float = 20
    """Minutes that the server gets until it answers: ten tries of the challenge's health check, 120 s apart."""
    eval_hours: float = 2
    """Hours that the sample evaluation may take."""
    eval_instances: int = 20
    """Instances of each entry of the sample evaluation (HELM's --max-eval-instances)."""
    load_requests: int = 8
    """Requests of each kind in the load, which has four at once."""

    def __post_init__(self) -> None:
        for name in ("ready_minutes", "eval_hours"):
            require(name, getattr(self, name), above=0)
        for name in ("eval_instances", "load_requests"):
            require(name, getattr(self, name), at_least=1)
