"""The formats of checkpoints/ and out/, and how a model gets out of them. Builds Fabric.

checkpoints/<org>/<name>/  lit_model.pth, lit_config.json, the tokenizer's files     (scripts/convert_hf_checkpoint.py)
out/<method>/<name>/       what was trained (trained_path), finetuned.json, metrics.csv, loss.png      (finetune/*.py)
  checkpoints/, best       what a run goes on from, and a link to the best of them         (lit_gpt/training/saves.py)
  plan.json, report.html, seconds_used.txt      plan and fact, the page, and the time of a run with a deadline
"""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from lit_gpt import adapter, adapter_v2, full, lora
from lit_gpt.args import AdapterArgs, FullArgs, LoRARunArgs, Precision
from lit_gpt.config import Config
from lit_gpt.convert.lit import WEIGHTS, open_lit
from lit_gpt.errors import UserError
from lit_gpt.files import Spec, load_state, open_state, save_state, write_text
from lit_gpt.model import GPT
from lit_gpt.places import RUN, require_run
from lit_gpt.places import default_out_dir as default_out_dir  # here, too, for those that need this module anyway
from lit_gpt.prompts.wording import reworded, say
from lit_gpt.quantize import QUANTIZATIONS, quantizable, quantized, require_quantizable
from lit_gpt.rope import Rope

CHECKPOINTS, BEST = "checkpoints", "best"
METHODS: dict[str, tuple[Callable[[GPT, Any], None], type]] = {
    "lora": (lora.inject, LoRARunArgs),
    "adapter": (adapter.inject, AdapterArgs),
    "adapter_v2": (adapter_v2.inject, AdapterArgs),
    "full": (full.inject, FullArgs),
}
"""Name in finetuned.json -> how a base model is changed, and by which arguments."""


@dataclass(frozen=True)
class Run:
    """What finetuned.json says: all it takes to load what was trained, and where it came from."""

    method: str
    """Key of METHODS."""
    method_args: dict[str, Any]
    prompt_style: str
    base: str
    """Folder of the checkpoint that was finetuned."""
    base_digest: str
    """`digest` of its weights."""
    data: dict[str, Any]
    """meta.json of the data that was trained on, and its folder."""
    training: dict[str, Any]
    """Arguments of the training."""
    versions: dict[str, str]
    quantize: str | None = None
    """Key of QUANTIZATIONS: what the base weights were trained with; None is the precision of the training."""


def make_fabric(precision: Precision | None = None, seed: int | None = None, mixed: bool = False) -> Fabric:
    """Fabric on one device; with a seed, all random generators start from it.

    Args:
        precision: None is bf16-true on a GPU that has it, 16-true on an older one, 32-true on a CPU.
        seed: None leaves the generators alone.
        mixed: for None, mixed precision in the place of 16 bits for everything.
    """
    if precision is None:
        precision = "32-true"
        if torch.cuda.is_available():
            precision = "bf16-true" if torch.cuda.is_bf16_supported() else "16-true"
            precision = precision.replace("true", "mixed") if mixed else precision
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"  # not a Mac's GPU, for which nothing of ours is tested
    fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    if seed is not None:
        fabric.seed_everything(seed, verbose=False)
    return fabric


def load_base(fabric: Fabric, checkpoint_dir: Path, quantize: str | None = None) -> tuple[GPT, str]:
    """The pretrained model on the device and in the precision of `fabric`, and the digest of its weights.

    Args:
        quantize: key of QUANTIZATIONS, for the linear layers that `quantizable` names; None quantizes nothing.

    Raises:
        UserError: no checkpoint, a damaged one, or one that does not fit its configuration; weights that cannot be
            quantized in this precision, on this device, or with what is installed.
    """
    config, specs, get = open_lit(checkpoint_dir)
    return build(fabric, config, specs, get, checkpoint_dir / WEIGHTS, quantize)


def build(
    fabric: Fabric,
    config: Config,
    specs: dict[str, Spec],
    get: Callable[[str], Tensor],
    path: Path,
    quantize: str | None = None,
) -> tuple[GPT, str]:
    """As `load_base`, of weights that `get` reads by name.

    Args:
        specs: shapes and dtypes of these weights.
        path: the file that they are in.
    """
    if quantize is not None:
        require_quantizable(quantize, fabric._precision.precision, fabric.device)
    with torch.device("meta"):
        model = GPT(config)
    check_fit(specs, model.state_dict(), path)
    with fabric.init_module(empty_init=True):
        like = torch.empty(0)
        model.rope = Rope(config)  # is computed, not read
    return model, fill(model, get, like, quantize)


def fill(model: GPT, get: Callable[[str], Tensor], like: Tensor, quantize: str | None) -> str:
    """Read the weights of `model`, which has none so far, layer by layer; returns their digest.

    A layer is quantized before the next one is read, so that no more than one is there in full.

    Args:
        get: reads a tensor by its name.
        like: has the device and the dtype of what is not quantized.
    """
    chosen = quantizable(model) if quantize else ()
    tied = "lm_head.weight" if model.config.tie_embeddings else None
    samples: dict[str, str] = {}
    for path in [path for path, _ in model.named_modules()]:  # names alone: a module in a list would stay
        module = model.get_submodule(path)
        for leaf in [leaf for leaf, _ in module.named_parameters(recurse=False)]:
            name = f"{path}.{leaf}"
            x = get(name)
            samples[name] = sample(name, x)
            if name != tied:
                setattr(module, leaf, nn.Parameter(like.new_empty(x.shape).copy_(x)))
        if path in chosen:
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, quantized(module, quantize))
    if tied:
        model.lm_head.weight = model.transformer.wte.weight
    assert not any(x.is_meta for x in (*model.parameters(), *model.buffers()))
    return digest(samples)


def load_finetuned(fabric: Fabric, checkpoint_dir: Path, run_dir: Path, quantize: str | None = None) -> tuple[GPT, Run]:
    """The model of `checkpoint_dir` with what the run in `run_dir` trained, whatever its method.

    Args:
        run_dir: a run's folder, or the weights file in it.
        quantize: what base weights to use instead of those that the run was trained with: key of QUANTIZATIONS, or
            none. The Run that is returned says what is used.

    Raises:
        UserError: no run, a damaged one, or one that was trained on another checkpoint.
    """
    run_dir = run_dir.parent if run_dir.suffix == ".pth" else run_dir
    run = read_run(run_dir)
    path = trained_path(run_dir, run.method)
    if quantize is not None:
        run = replace(run, quantize=None if quantize == "none" else quantize)
    if run.method == "full":  # has a model of its own, and of the base no more than the name
        specs, get = open_state(path, "the finetune script")
        config, base_specs, get_base = open_lit(checkpoint_dir)
        require_base(run, run_dir, checkpoint_dir, digest({n: sample(n, get_base(n)) for n in base_specs}))
        return build(fabric, config, specs, get, path, run.quantize)[0], run
    trained = load_state(path, "the finetune script")
    model, base_digest = load_base(fabric, checkpoint_dir, run.quantize)
    require_base(run, run_dir, checkpoint_dir, base_digest)
    _, args_class = METHODS[run.method]
    apply(model, run.method, args_class(**run.method_args), begins=False)
    check_fit(trained, trained_parameters(model), path)
    model.load_state_dict(trained, strict=False)
    return model, run


def apply(model: GPT, method: str, args: Any, begins: bool = True) -> None:
    """Change a base model, in place, as the method does.

    Args:
        method: key of METHODS.
        args: of the class that stands there.
        begins: False where all that a run trained is put in next, so that first values need not be searched for.
    """
    inject, _ = METHODS[method]
    if begins or method != "lora":  # the one whose first values can take long
        inject(model, args)
    else:
        lora.inject(model, args, begins=False)


def require_base(run: Run, run_dir: Path, checkpoint_dir: Path, base_digest: str) -> None:
    """Raises: UserError if the run was trained on other weights than those of this digest."""
    if base_digest != run.base_digest:
        raise UserError(
            f"{run_dir} was trained on other weights than those of {checkpoint_dir}; "
            f"pass --checkpoint_dir {run.base}, or that folder's new place"
        )


def read_run(run_dir: Path) -> Run:
    """What a run says of itself; a note on stderr says if its prompt style writes other texts now.

    Raises:
        UserError: the folder has no whole record of a run.
    """
    require_run(run_dir)
    path = run_dir / RUN
    try:
        run = Run(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as e:
        raise UserError(f"{path} is damaged or from another version of this toolkit ({e})") from e
    if run.method not in METHODS:
        raise UserError(f"{path} names the method {run.method!r}; known are {', '.join(METHODS)}")
    if run.quantize is not None and run.quantize not in QUANTIZATIONS:
        raise UserError(f"{path} names the weights {run.quantize!r}; known are {', '.join(QUANTIZATIONS)}")
    if said := reworded(run.data):
        say(said)
    return run


def trained_path(run_dir: Path, method: str) -> Path:
    """Where a run of this method keeps its weights: as Lit-GPT calls the files."""
    kind = {"adapter_v2": "_adapter", "full": ""}.get(method, f"_{method}")
    return run_dir / f"lit_model{kind}_finetuned.pth"


def save_run(run: Run, out_dir: Path) -> None:
    """Write finetuned.json."""
    write_text(out_dir / RUN, run_text(run))


def run_text(run: Run) -> str:
    """What finetuned.json says of a run."""
    return json.dumps(asdict(run), indent=2, default=str) + "\n"


def save_trained(model: GPT, path: Path) -> None:
    """Save the parameters of `model` that require a gradient, and no others."""
    save_state(trained_parameters(model), path)


def trained_parameters(model: GPT) -> dict[str, Tensor]:
    """Those that require a gradient; one that goes by two names, as a tied head, under both. With them goes what LoRA
    started from, where it takes that to know what was learned."""
    parameters = {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    return parameters | {n: x for n, x in model.named_buffers() if lora.trainable(n)}


def check_fit(found: Mapping[str, Tensor | Spec], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Raises: UserError unless both have the same names with the same shapes."""
    for name in sorted(found.keys() ^ wanted.keys())[:1]:
        raise UserError(f"{path} {'lacks' if name in wanted else 'has an unexpected'} {name}; it is of another model")
    for name, x in found.items():
        if x.shape != wanted[name].shape:
            raise UserError(f"{path}: {name} has shape {list(x.shape)}, the model needs {list(wanted[name].shape)}")


def sample(name: str, x: Tensor) -> str:
    """Name, shape and a few values of a tensor; equal for equal values in any of our dtypes."""
    flat = x.flatten()
    few = flat[:: max(1, flat.numel() // 16)][:16].to(torch.bfloat16)
    return f"{name} {list(x.shape)} {few.float().tolist()}"


def digest(samples: dict[str, str]) -> str:
    """What tells the weights of one checkpoint from those of another.

    Args:
        samples: `sample` of each tensor, by name.
    """
    return hashlib.sha256("".join(samples[name] for name in sorted(samples)).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of Python and the packages that decide results, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in ("torch", "lightning", "tokenizers", "sentencepiece", "bitsandbytes"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
