"""Evaluate a model finetuned by finetune/lora.py with EleutherAI's lm-evaluation-harness.

python eval/lm_eval_harness_lora.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \
    --precision bf16-true --eval_tasks "[truthfulqa_mc]" --batch_size 4 --save_filepath results.json

The table of scores goes to stdout, everything else to stderr.
"""

from pathlib import Path
from typing import Literal

from lit_gpt.args import EvalArgs, Precision, Quantization


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    finetuned_path: Path | None = None,
    precision: Precision | None = None,
    quantize: Quantization | Literal["none"] | None = None,
    devices: int | None = None,
    evaluation: EvalArgs = EvalArgs(),
) -> None:
    """Evaluates a finetuned model.

    Args:
        checkpoint_dir: folder of the checkpoint that was finetuned.
        finetuned_path: the run's folder, or the weights in it; out/lora/<name of the checkpoint> if not given.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: quantization of the base weights, or none for no quantization; the training's if not given.
        devices: GPUs of this machine, or processes on a CPU, that share the questions, with a whole model each; 1, or
            as many as torchrun started, if not given.
    """
    from lit_gpt.args.cluster import ClusterArgs
    from lit_gpt.args.folders import default_out_dir, require_checkpoint, run_folder
    from lit_gpt.checkpoints.runs import load_finetuned, read_run
    from lit_gpt.evaluation.run import answering_together, choose_style, evaluate
    from lit_gpt.evaluation.tasks import prepare
    from lit_gpt.fabric import make_fabric
    from lit_gpt.tokenizer import Tokenizer

    require_checkpoint(checkpoint_dir)
    run_dir = finetuned_path or default_out_dir("lora", checkpoint_dir)
    run_dir = run_folder(run_dir)
    style = choose_style(evaluation, read_run(run_dir).prompt_style, checkpoint_dir)
    fabric = make_fabric(precision, evaluation.seed, cluster=ClusterArgs(devices))
    with answering_together(fabric) as team:
        tasks = prepare(evaluation) if team.leads else None
        model, run = load_finetuned(fabric, checkpoint_dir, run_dir, quantize)
        about = {"checkpoint_dir": checkpoint_dir, "finetuned_path": run_dir, "method": run.method}
        about |= {"precision": precision, "quantize": run.quantize}
        tokenizer = Tokenizer(checkpoint_dir)
        evaluate(fabric, model, tokenizer, tasks=tasks, args=evaluation, style=style, about=about, team=team)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main, method="lora")
