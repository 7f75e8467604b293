"""Converts between folders of PEFT adapters and folders of our LoRA runs.

An adapter made from a run keeps the run's record beside PEFT's files, from which the exact same run can be restored.
"""

import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_gpt.args import LoRARunArgs
from lit_gpt.args.folders import RUN
from lit_gpt.checkpoints.base import digest_of
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.checkpoints.origin import origin_of
from lit_gpt.checkpoints.runs import Run, read_run, require_base, save_run, versions
from lit_gpt.checkpoints.trained import load_trained, trained_path
from lit_gpt.convert.export import copy_tokenizer
from lit_gpt.convert.names import EMBEDDINGS
from lit_gpt.convert.peft import CONFIG, PICKLED, WEIGHTS, from_peft, model_card, to_peft
from lit_gpt.convert.peft.whole import for_text, for_whole
from lit_gpt.convert.precision import published_as
from lit_gpt.errors import UserError
from lit_gpt.files import load_state, only_writer, replace_folder, save_state
from lit_gpt.files.headers import read_header
from lit_gpt.files.tensors import first_line
from lit_gpt.prompts import CHAT_TEMPLATE, make_prompt, open_style, read_template
from lit_gpt.records import read_object

_PRECISIONS = {torch.bfloat16: "bf16-true", torch.float16: "16-true"}
"""Precision that keeps the dtype of a checkpoint; 32-true for any other dtype."""


def write_adapter(
    checkpoint_dir: Path, run_dir: Path, peft_dir: Path, overwrite: bool, fold_scale: bool = False
) -> str:
    """Writes the run in `run_dir` as a PEFT adapter to `peft_dir`, and returns a sentence on the base's precision.

    The folder gets weights, settings, a model card, the tokenizer, and the run's record.

    Args:
        fold_scale: multiply the scale into the weights, for tools that ignore alpha, rsLoRA and patterns.

    Raises:
        UserError: the run is not a LoRA run of this checkpoint, or has no counterpart in PEFT; `peft_dir` is not empty.
    """
    run = read_run(run_dir)
    if run.method != "lora":
        raise UserError(f"{run_dir} is a run of {run.method}, and only LoRA's become adapters of PEFT")
    config, specs, get = open_lit(checkpoint_dir)
    require_base(run, run_dir, checkpoint_dir, digest_of(specs, get))
    trained = load_trained(trained_path(run_dir, run.method))
    rows = None
    if (checkpoint_dir / "config.json").is_file():  # the published size of the vocabulary, since ours may be padded
        rows = read_object(checkpoint_dir / "config.json").get("vocab_size")
    state, settings = to_peft(
        config, LoRARunArgs(**run.method_args), trained=trained, get=get, fold_scale=fold_scale, rows=rows
    )
    card = partial(model_card, config, settings)
    if config.wrapper:
        state, settings = for_whole(state, settings, config.wrapper)
    own_template = run.prompt_style == CHAT_TEMPLATE
    prompt = None if own_template else make_prompt(run.prompt_style, "{prompt}", checkpoint_dir=checkpoint_dir)

    precision = _precision_in_training(run, checkpoint_dir)

    def write(folder: Path) -> None:
        save_file(state, folder / WEIGHTS, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(prompt, precision), encoding="utf-8")
        copy_tokenizer(checkpoint_dir, folder)
        shutil.copyfile(run_dir / RUN, folder / RUN)

    with only_writer(peft_dir):
        replace_folder(peft_dir, write, overwrite)
    return precision


def _precision_in_training(run: Run, checkpoint_dir: Path) -> str:
    """Returns a sentence on the precision of the base's weights beside which a run was trained."""
    kind = run.quantize or run.training.get("precision") or "an unknown precision"
    published = published_as(checkpoint_dir)
    return f"In training the base's weights were in {kind}{f' (published in {published})' if published else ''}."


def read_adapter(checkpoint_dir: Path, peft_dir: Path, run_dir: Path, prompt_style: str | None, overwrite: bool) -> str:
    """Writes the adapter in `peft_dir` as a run to `run_dir`, and returns the prompt style that the run records.

    Args:
        prompt_style: prompt style of the run; None takes that of the run from which the adapter was made, else
            chat_template if the adapter has the checkpoint's own template, else alpaca.

    Raises:
        UserError: there is no adapter, it has no counterpart here, or it is of another model; `run_dir` is not empty.
    """
    settings, state = _open_adapter(peft_dir)
    config, specs, get = open_lit(checkpoint_dir)
    if config.wrapper:
        state, settings = for_text(state, settings)
    base_digest = digest_of(specs, get)
    before = read_run(peft_dir) if (peft_dir / RUN).is_file() else None
    if before is not None:
        require_base(before, peft_dir, checkpoint_dir, base_digest)
    args, trained = from_peft(config, settings, state, get=get, args=before and LoRARunArgs(**before.method_args))
    style = prompt_style or (before.prompt_style if before else _likely_style(checkpoint_dir, peft_dir))
    open_style(style, checkpoint_dir)
    precision = _PRECISIONS.get(specs[EMBEDDINGS].dtype, "32-true")
    run = Run(
        method="lora",
        method_args={name: x for name, x in asdict(args).items() if x is not None and x != ()},
        prompt_style=style,
        base=str(checkpoint_dir),
        base_digest=base_digest,
        data=before.data if before else {},
        training=before.training if before else {"from": str(peft_dir), "precision": precision},
        versions=versions(),
        quantize=before.quantize if before else None,
        base_files=origin_of(checkpoint_dir),
    )

    def write(folder: Path) -> None:
        save_state(trained, trained_path(folder, run.method))
        save_run(run, folder)

    with only_writer(run_dir):
        replace_folder(run_dir, write, overwrite)
    return style


def _likely_style(checkpoint_dir: Path, peft_dir: Path) -> str:
    """Returns the prompt style in which an adapter was probably trained; trl saves the chat template that it used."""
    try:
        return CHAT_TEMPLATE if read_template(peft_dir) == read_template(checkpoint_dir) else "alpaca"
    except UserError:  # no template
        return "alpaca"


def _open_adapter(peft_dir: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the content of adapter_config.json, and the weights from the file that PEFT would read.

    Raises:
        UserError: a file is missing or damaged.
    """
    if not (peft_dir / CONFIG).is_file():
        raise UserError(f"{peft_dir} has no {CONFIG}; PEFT's save_pretrained writes it")
    if not any((peft_dir / name).is_file() for name in (WEIGHTS, PICKLED)):
        raise UserError(f"{peft_dir} has neither {WEIGHTS} nor {PICKLED}; PEFT's save_pretrained writes it")
    settings = read_object(peft_dir / CONFIG)
    if not (peft_dir / WEIGHTS).is_file():
        return settings, load_state(peft_dir / PICKLED, "PEFT's save_pretrained")
    path = peft_dir / WEIGHTS
    try:
        read_header(path)  # which compares it with the file
        return settings, load_file(path)
    except (ValueError, SafetensorError) as e:
        raise UserError(f"{path} is truncated or damaged ({first_line(e)}); save it again") from e
