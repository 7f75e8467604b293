"""The folder of a LoRA run written as an adapter of llama.cpp."""

from pathlib import Path

from lit_gpt.checkpoint import METHODS, digest, read_run, require_base, sample, trained_path
from lit_gpt.convert.gguf.adapter import adapter_tensors, write_adapter
from lit_gpt.convert.lit import open_lit
from lit_gpt.errors import UserError
from lit_gpt.files import load_state, replace_folder


def write_gguf_adapter(checkpoint_dir: Path, run_dir: Path, folder: Path, overwrite: bool) -> Path:
    """Make `folder` with <name>-lora.gguf of the run in `run_dir`; returns the file's path.

    Raises:
        UserError: no LoRA run of this checkpoint, one that an adapter cannot hold; a folder that holds something.
    """
    run = read_run(run_dir)
    if run.method != "lora":
        raise UserError(f"{run_dir} is a run of {run.method}, and only LoRA's become adapters of llama.cpp")
    config, specs, get = open_lit(checkpoint_dir)
    require_base(run, run_dir, checkpoint_dir, digest({name: sample(name, get(name)) for name in specs}))
    args = METHODS["lora"][1](**run.method_args)
    tensors = adapter_tensors(config, args, load_state(trained_path(run_dir, run.method), "the finetune script"))
    name = f"{config.name}-lora.gguf"
    replace_folder(folder, lambda temporary: write_adapter(config, args, tensors, temporary / name), overwrite)
    return folder / name
