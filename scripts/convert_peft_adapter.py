"""Convert a run of finetune/lora.py to an adapter of PEFT or of llama.cpp, or an adapter of PEFT to such a run.

python scripts/convert_peft_adapter.py --to peft --checkpoint_dir checkpoints/openlm-research/open_llama_7b --peft_dir a
python scripts/convert_peft_adapter.py --to lit --checkpoint_dir checkpoints/openlm-research/open_llama_7b --peft_dir a

`peft.PeftModel.from_pretrained(model, "a")` loads the adapter, generate/lora.py the run. PEFT need not be installed.
"""

import shlex
from pathlib import Path
from typing import Literal


def main(
    to: Literal["peft", "lit", "gguf"],
    checkpoint_dir: Path,
    peft_dir: Path,
    finetuned_path: Path | None = None,
    prompt_style: str | None = None,
    fold_scale: bool = False,
    overwrite: bool = False,
) -> None:
    """Converts LoRA weights to or from other tools' adapters.

    Args:
        to: peft reads the run and writes peft_dir, gguf does the same for llama.cpp; lit reads peft_dir and writes the
            run.
        checkpoint_dir: folder of the checkpoint that was finetuned.
        peft_dir: folder with adapter_config.json and adapter_model.safetensors, or adapter_model.bin to read, or with
            a gguf file.
        finetuned_path: the run's folder; out/lora/<name of the checkpoint> if not given.
        prompt_style: with --to lit, the style in which generate/lora.py will ask; if not given, that of the run from
            which the adapter was made, the checkpoint's chat template if the adapter came with it, or else alpaca.
        fold_scale: with --to peft, multiply the scale into the weights, so that tools which ignore rsLoRA, alpha or
            rank patterns, such as llama.cpp's converter, compute the same.
        overwrite: replace the output folder if it is not empty.
    """
    from lit_gpt.args.folders import default_out_dir, require_run, require_there, run_folder
    from lit_gpt.errors import UserError

    if prompt_style and to != "lit":
        raise UserError("--prompt_style is for --to lit; a run knows the style in which it was trained")
    if fold_scale and to != "peft":
        raise UserError("--fold_scale is for --to peft; a run and a gguf file keep the scale that the adapter has")
    run_dir = finetuned_path or default_out_dir("lora", checkpoint_dir)
    run_dir = run_folder(run_dir)
    if to == "lit":  # before the slow imports
        require_there("peft_dir", peft_dir)
    else:
        require_run(run_dir, given=finetuned_path is not None)
    from lit_gpt.convert.gguf.adapter import write_gguf_adapter
    from lit_gpt.convert.peft.runs import read_adapter, write_adapter

    if to == "peft":
        precision = write_adapter(checkpoint_dir, run_dir, peft_dir, overwrite=overwrite, fold_scale=fold_scale)
        print(precision)
        print(f"Saved the adapter to {peft_dir}; share it with: hf upload USER/NAME {shlex.quote(str(peft_dir))}")
        print(
            "finetuned.json in it brings the very run back, and names your folders: --exclude finetuned.json leaves it"
        )
    elif to == "gguf":
        path = write_gguf_adapter(checkpoint_dir, run_dir, peft_dir, overwrite)
        print(f"Saved the adapter to {path}; llama-cli --model <the checkpoint's gguf> --lora {shlex.quote(str(path))}")
    else:
        style = read_adapter(checkpoint_dir, peft_dir, run_dir, prompt_style=prompt_style, overwrite=overwrite)
        print(f"Saved the run to {run_dir}; prompts will be asked in the style {style} (--prompt_style)")


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main, unchecked=("finetuned_path",))  # --to lit creates it
