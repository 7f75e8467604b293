"""Folders of PEFT adapters and folders of our LoRA runs, each made of the other.

An adapter that was a run keeps the run's own record beside PEFT's files: with it, the very same run comes back.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lit_gpt.args import LoRAArgs
from lit_gpt.checkpoint import RUN, Run, digest, read_run, require_base, sample, save_run, trained_path, versions
from lit_gpt.convert.lit import open_lit
from lit_gpt.convert.peft import CONFIG, WEIGHTS, from_peft, to_peft
from lit_gpt.errors import UserError
from lit_gpt.files import load_state, replace_folder, save_state
from lit_gpt.prompts import open_style


def write_adapter(checkpoint_dir: Path, run_dir: Path, peft_dir: Path, overwrite: bool) -> None:
    """Make `peft_dir` of the run in `run_dir`.

    Raises:
        UserError: no LoRA run of this checkpoint, or one without a counterpart in PEFT; a folder that holds something.
    """
    run = read_run(run_dir)
    if run.method != "lora":
        raise UserError(f"{run_dir} is a run of {run.method}, and only LoRA's become adapters of PEFT")
    config, specs, get = open_lit(checkpoint_dir)
    require_base(run, run_dir, checkpoint_dir, digest({name: sample(name, get(name)) for name in specs}))
    trained = load_state(trained_path(run_dir, run.method), "the finetune script")
    state, settings = to_peft(config, LoRAArgs(**run.method_args), trained)

    def write(folder: Path) -> None:
        save_file(state, folder / WEIGHTS, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(run_dir / RUN, folder / RUN)

    replace_folder(peft_dir, write, overwrite)


def read_adapter(
    checkpoint_dir: Path, peft_dir: Path, run_dir: Path, prompt_style: str | None, overwrite: bool
) -> None:
    """Make a run in `run_dir` of the adapter in `peft_dir`.

    Args:
        prompt_style: the run's; None is that of the run which the adapter was, else alpaca.

    Raises:
        UserError: no adapter, one that has no counterpart here, or one of another model; a folder that holds something.
    """
    if missing := [name for name in (CONFIG, WEIGHTS) if not (peft_dir / name).is_file()]:
        raise UserError(f"{peft_dir} has no {missing[0]}; PEFT's save_pretrained writes it")
    try:
        settings = json.loads((peft_dir / CONFIG).read_text(encoding="utf-8"))
        state = load_file(peft_dir / WEIGHTS)
    except (ValueError, SafetensorError) as e:
        raise UserError(f"{peft_dir} is damaged ({e}); save it again") from e
    config, specs, get = open_lit(checkpoint_dir)
    base_digest = digest({name: sample(name, get(name)) for name in specs})
    before = read_run(peft_dir) if (peft_dir / RUN).is_file() else None
    if before is not None:
        require_base(before, peft_dir, checkpoint_dir, base_digest)
    args, trained = from_peft(config, settings, state, before and LoRAArgs(**before.method_args))
    style = prompt_style or (before.prompt_style if before else "alpaca")
    open_style(style, checkpoint_dir)
    run = Run(
        method="lora",
        method_args=asdict(args),
        prompt_style=style,
        base=str(checkpoint_dir),
        base_digest=base_digest,
        data=before.data if before else {},
        training=before.training if before else {"from": str(peft_dir)},
        versions=versions(),
        quantize=before.quantize if before else None,
    )

    def write(folder: Path) -> None:
        save_state(trained, trained_path(folder, run.method))
        save_run(run, folder)

    replace_folder(run_dir, write, overwrite)
