"""Convert a run of finetune/lora.py to an adapter of PEFT or of llama.cpp, or an adapter of PEFT to such a run.

python scripts/convert_peft_adapter.py --to peft --checkpoint_dir checkpoints/openlm-research/open_llama_7b --peft_dir a
python scripts/convert_peft_adapter.py --to lit --checkpoint_dir checkpoints/openlm-research/open_llama_7b --peft_dir a

`peft.PeftModel.from_pretrained(model, "a")` loads the one, generate/lora.py the other. PEFT need not be installed.
"""

from pathlib import Path
from typing import Literal


def main(
    to: Literal["peft", "lit", "gguf"],
    checkpoint_dir: Path,
    peft_dir: Path,
    finetuned_path: Path | None = None,
    prompt_style: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert LoRA weights.

    Args:
        to: peft reads the run and writes peft_dir, gguf does so for llama.cpp; lit reads peft_dir and writes the run.
        checkpoint_dir: folder of the checkpoint that was finetuned.
        peft_dir: folder with adapter_config.json and adapter_model.safetensors, or with a gguf file.
        finetuned_path: the run's folder; out/lora/<name of the checkpoint> if not given.
        prompt_style: with --to lit, the style in which generate/lora.py is to ask; alpaca if nothing else is known.
        overwrite: replace what is written to if it holds something.
    """
    from lit_gpt.places import default_out_dir, require_run, require_there

    run_dir = finetuned_path or default_out_dir("lora", checkpoint_dir)
    run_dir = run_dir.parent if run_dir.suffix == ".pth" else run_dir
    if to != "lit":  # before what takes long to import
        require_run(run_dir, given=finetuned_path is not None)
    else:
        require_there("peft_dir", peft_dir)
    from lit_gpt.gguf_adapter import write_gguf_adapter
    from lit_gpt.interchange import read_adapter, write_adapter

    if to == "peft":
        write_adapter(checkpoint_dir, run_dir, peft_dir, overwrite)
        print(f"Saved the adapter to {peft_dir}")
    elif to == "gguf":
        path = write_gguf_adapter(checkpoint_dir, run_dir, peft_dir, overwrite)
        print(f"Saved the adapter to {path}; llama-cli --model <the checkpoint's gguf> --lora {path}")
    else:
        read_adapter(checkpoint_dir, peft_dir, run_dir, prompt_style, overwrite)
        print(f"Saved the run to {run_dir}")


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main, unchecked=("finetuned_path",))  # which is made with --to lit
