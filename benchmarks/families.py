"""Our LoRA step and that of transformers with peft on a model of each architecture, in turn: real tokens a second.

python benchmarks/families.py [--only pythia-6.9b,falcon-7b] [--rounds 3] [--documents 32] [--precision bf16-true]

Random weights of a listed model's traits: on a GPU its widths in bf16 and a few of its layers, on a CPU 4 layers that
are 512 wide, in fp32 unless told otherwise. LoRA r 8 is on the linear layers of attention, without dropout. The
documents are as long as Alpaca's, and begin as its prompts do. `packed` lays them end to end, `padded` takes 4 at a
time; both are left to transformers' own attention. `unshared` is ours without sharing what documents begin with. The
loss of the untouched weights has to be the same, or the model counts as failed. Each takes about a minute; nothing is
downloaded.
"""

import argparse
import gc
import json
import math
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import ours
import torch
from gpu import commit
from gpu_parts import documents as make
from gpu_parts.documents import Document, n_targets, n_tokens
from gpu_parts.layouts import Rows, packed, padded, step_runner
from gpu_parts.timing import timed
from safetensors.torch import save_file
from torch import nn

from lit_gpt.args import LoRAArgs
from lit_gpt.config import Config
from lit_gpt.convert.configs import config_to_hf
from lit_gpt.convert.names import to_hf
from lit_gpt.errors import UserError
from lit_gpt.families import config_for
from lit_gpt.layers.mixing_kernels import without_kernels
from lit_gpt.model import GPT

MODELS = (
    "Llama-2-7b-hf",
    "Meta-Llama-3-8B",
    "pythia-6.9b",
    "RedPajama-INCITE-7B-Base",
    "falcon-7b",
    "falcon-40b",
    "Mistral-7B-v0.1",
    "Mixtral-8x7B-v0.1",
    "phi-2",
    "Phi-3-mini-4k-instruct",
    "Gemma-7b",
    "gemma-2-9b",
    "gemma-3-1b-pt",
    "gemma-4-E2B",
    "gemma-4-26B-A4B",
    "Qwen2-7B",
    "Qwen3-8B",
    "Qwen3-30B-A3B",
    "OLMo-2-1124-7B",
    "Olmo-3-1025-7B",
    "SmolLM3-3B",
    "stablelm-3b-4e1t",
    "stablelm-2-12b",
    "granite-3.3-2b-instruct",
    "EXAONE-4.0-1.2B",
    "GLM-4-9B-0414",
    "Hunyuan-7B-Instruct",
    "Nemotron-Mini-4B-Instruct",
    "Apertus-8B-2509",
    "Ministral-3-8B-Base-2512",
    "gpt-oss-20b",
    "LFM2-1.2B",
    "GLM-4.5-Air",
    "Llama-4-Scout-17B-16E",
)
"""One of each architecture, and of what differs within one. Those with the delta rule or Mamba-2 are for `--only`
(Qwen3.5-9B, granite-4.0-h-1b): transformers packs no documents there, and without kernels both are slow."""
_COLUMNS = ("padded", "packed", "unshared", "ours")
DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16}
ATTENTION = LoRAArgs(lora_r=8, lora_dropout=0.0, lora_key=True, lora_projection=True)
THEIRS = ["q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "dense", "in_proj", "out_proj"]
"""The same layers by transformers' names."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(MODELS), help="models, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=32, help="of a step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--precision", choices=DTYPES, help="32-true on a CPU and bf16-true on a GPU if not given")
    parser.add_argument("--kernels", choices=("true", "false"), default="true", help="ours in installed kernels, too")
    args = parser.parse_args()
    device, names = torch.device(args.device), args.only.split(",")
    args.precision = args.precision or ("bf16-true" if device.type == "cuda" else "32-true")
    if missing := [package for package in ("transformers", "peft") if find_spec(package) is None]:
        sys.exit(f"error: not installed, but compared with: {', '.join(missing)}; pip install {' '.join(missing)}")
    for name in names:
        require_known(name)
    print(where(device, args.precision), flush=True)
    columns = "".join(f"{run:>10}" for run in _COLUMNS)
    print(f"{'model':26}{columns}   real tokens a second;  ours / the best")
    ratios = []
    for name in names:
        try:
            with nullcontext() if args.kernels == "true" else without_kernels():
                ratios.append(compared(name, args, device))
        except Exception:
            print(f"{name:26}FAILED", *traceback.format_exc().strip().splitlines()[-3:], sep="\n    ", flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    failed = len(names) - len(ratios)
    print()
    for label in ("ours", "unshared") if ratios else ():
        of_models = [r[label] for r in ratios]
        mean = math.exp(statistics.mean(map(math.log, of_models)))
        print(f"{label} / the best of theirs: {min(of_models):.2f} at least, {mean:.2f} in the mean")
    if failed:
        sys.exit(f"error: {failed} of the models failed")


def require_known(name: str) -> None:
    try:
        config_for(name)
    except UserError as e:
        sys.exit(f"error: {e}")


def where(device: torch.device, precision: str) -> str:
    """What is measured, and on what."""
    from importlib.metadata import version

    on = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    on = f"{on}, {precision}"
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "peft"))
    return f"benchmarks/families.py, commit {commit()}, {time.strftime('%Y-%m-%d')}; {on}; {packages}"


def compared(name: str, args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Print the row of a model. By way of ours, its rate / that of the faster of theirs.

    Raises:
        ArithmeticError: the losses differ.
    """
    on_gpu = device.type == "cuda"
    dtype, size = DTYPES[args.precision], 4096 if on_gpu else 512
    config = shape(name, on_gpu)
    ours.set_compile(on_gpu)
    model = ours.build(config, device, dtype)
    theirs = exported(model, dtype, device)
    samples = make.styled(args.documents * (4 if on_gpu else 1), config.vocab_size, seed=1)
    layouts = {"padded": padded(samples, 4, device)}
    if not {"delta", "mamba2"} & set(config.mixers or ()):
        layouts["packed"] = packed(samples, size, device)
    off = abs(our_loss(model, samples, size, device) / their_loss(theirs, layouts["padded"], samples) - 1)
    if not off < (1e-5 if dtype == torch.float32 else 1e-2):
        raise ArithmeticError(f"the loss of the untouched weights is {off:.1e} off")
    ours.adapt(model, ATTENTION)
    step = step_runner(adapted(theirs))
    runs: dict[str, Callable[[], object]] = {layout: partial(step, batches) for layout, batches in layouts.items()}
    for label, shared in (("unshared", False), ("ours", True)):
        runs[label] = ours.step_runner(model, ours.batches_of(samples, size, shared), device)
    seconds = {label: [] for label in runs}
    for round_ in range(args.rounds + 1):  # the first one warms up
        for label, run in runs.items():
            taken = timed(run, device, 1)
            if round_:
                seconds[label].append(taken)
    rates = {label: n_tokens(samples) / statistics.median(times) for label, times in seconds.items()}
    ratios = {label: rates[label] / max(rates[layout] for layout in layouts) for label in ("ours", "unshared")}
    shown = "".join(f"{rates[run]:10.0f}" if run in rates else f"{'-':>10}" for run in _COLUMNS)
    print(f"{name:26}{shown}   x {ratios['ours']:.2f}   loss {off:.0e} off", flush=True)
    return ratios


def shape(name: str, on_gpu: bool) -> Config:
    """A listed model with fewer layers, and on a CPU less wide: the same traits, and heads shared in the same way."""
    c = config_for(name)
    n_layer = 2 if c.mlp == "moe" and on_gpu else 4
    layers = {
        field: None if (of := getattr(c, field)) is None else [i for i in of if i < n_layer]
        for field in ("sliding_layers", "unrotated_layers", "dense_layers", "mlp_layers")
    }
    layers["mixers"] = c.mixers and c.mixers[:n_layer]
    if c.mixers and "attention" not in c.mixers[:n_layer]:  # transformers' cache wants one
        layers["mixers"] = [*c.mixers[: n_layer - 1], "attention"]
    if c.full_head_size:  # every other layer has the window, and half of them no keys if some have none
        layers |= {"sliding_layers": [*range(0, n_layer, 2)], "kv_shared_layers": c.kv_shared_layers and n_layer // 2}
    if on_gpu:
        return replace(c, n_layer=n_layer, **layers)
    n_head = 8
    shared = c.n_head // c.n_query_groups  # by so many queries
    return replace(
        c,
        n_layer=n_layer,
        n_embd=512,
        n_head=n_head,
        head_size=64,
        n_query_groups=max(1, n_head // shared),
        **{
            width: round(512 * getattr(c, width) / c.n_embd / 32) * 32
            for width in ("intermediate_size", "shared_expert_size", "dense_size", "kv_shared_mlp_size")
        },
        full_head_size=64 * c.full_head_size // c.head_size,
        full_query_groups=c.full_query_groups and max(1, n_head * c.full_query_groups // c.n_head),
        per_layer_input_size=c.per_layer_input_size // 8,
        rotary_percentage=round(8 * c.rotary_percentage) / 8,  # of fewer channels, still an even number of them
        n_expert=min(c.n_expert, 32),
        vocab_size=8192,
        padded_vocab_size=8192,
        **layers,
    )


def exported(model: GPT, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """transformers' model with the same weights."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        state = {n: x.cpu().contiguous().clone() for n, x in to_hf(model.config, model.state_dict()).items()}
        save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        described = {**config_to_hf(model.config), "pad_token_id": None}
        (Path(folder) / "config.json").write_text(json.dumps(described), encoding="utf-8")
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return theirs.to(device)  # pyright: ignore[reportArgumentType] its decorator hides `self`


def adapted(model: nn.Module) -> nn.Module:
    """With LoRA on attention's layers, as `ATTENTION`."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=8, lora_alpha=16, target_modules=THEIRS, task_type="CAUSAL_LM")
    return get_peft_model(model, settings).train()


@torch.no_grad()
def their_loss(model: nn.Module, batches: list[Rows], samples: list[Document]) -> float:
    """The mean over all targets."""
    model.eval()
    total = sum(model(**rows).loss.item() * int((rows["labels"][:, 1:] != make.IGNORE).sum()) for rows in batches)
    return total / n_targets(samples)


@torch.no_grad()
def our_loss(model: GPT, samples: list[Document], size: int, device: torch.device) -> float:
    """The mean over all targets, prefixes shared."""
    model.eval()
    batches = ours.batches_of(samples, size, shared=True)
    return sum(ours.batch_loss(model, batch, device).item() for batch in batches) / n_targets(samples)


if __name__ == "__main__":
    main()
