"""Compare a pretrained model with runs of it on tasks of lm-eval: whether scores differ, and which answers changed.

python eval/compare.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \
    --finetuned_path out/lora/open_llama_7b --eval_tasks "[truthfulqa_mc]"

The tables and the verdicts go to stdout, with all questions that changed to comparison.json and comparison.html.
"""

from pathlib import Path
from typing import Literal

from lit_gpt.args import EvalArgs, Precision, Quantization


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    finetuned_path: tuple[Path, ...] = (),
    precision: Precision | None = None,
    quantize: Quantization | Literal["none"] | None = None,
    out_dir: Path | None = None,
    evaluation: EvalArgs = EvalArgs(),
) -> None:
    """Compares a pretrained model with runs of it.

    Args:
        checkpoint_dir: folder of the checkpoint that was finetuned.
        finetuned_path: folders of runs of any method, or the weights in them, such as out/lora/a,out/lora/b.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: quantization of all models, or none for no quantization; if not given, runs are quantized as in their
            training, and the pretrained model is not.
        out_dir: folder for comparison.json and comparison.html; out/compare/<name of the checkpoint> if not given.
    """
    from lit_gpt.args.folders import default_out_dir, require_checkpoint, run_folder
    from lit_gpt.evaluation.comparing.run import run_comparison
    from lit_gpt.fabric import make_fabric
    from lit_gpt.layers.compiled import compiling

    require_checkpoint(checkpoint_dir)
    folders = [run_folder(path) for path in finetuned_path]
    out_dir = out_dir or default_out_dir("compare", checkpoint_dir)
    fabric = make_fabric(precision, evaluation.seed)
    with compiling():
        run_comparison(fabric, checkpoint_dir, folders, evaluation, quantize=quantize, out_dir=out_dir)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
