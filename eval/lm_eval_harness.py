"""Evaluate a pretrained model, or a run of any finetuning method, with EleutherAI's lm-evaluation-harness.

python eval/lm_eval_harness.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --precision bf16-true \
    --eval_tasks "[truthfulqa_mc]" --batch_size 4 --save_filepath results.json

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
    """Evaluates a model.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        finetuned_path: a run's folder, or the weights in it; the pretrained model if not given.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: quantize the weights of the blocks to 4 or 8 bits, or not (none); if not given, a run is quantized as
            in its training, and a pretrained model is not.
        devices: GPUs of this machine, or processes on a CPU, that share the questions, with a whole model each; 1, or
            as many as torchrun started, if not given.
    """
    from lit_gpt.args.cluster import ClusterArgs
    from lit_gpt.args.folders import require_checkpoint, run_folder
    from lit_gpt.checkpoints.base import load_pretrained
    from lit_gpt.checkpoints.runs import load_finetuned, read_run
    from lit_gpt.evaluation.run import answering_together, choose_style, evaluate
    from lit_gpt.evaluation.tasks import prepare
    from lit_gpt.fabric import make_fabric
    from lit_gpt.merge.record import trained_style
    from lit_gpt.tokenizer import Tokenizer

    require_checkpoint(checkpoint_dir)
    run_dir = finetuned_path and run_folder(finetuned_path)
    trained_with = read_run(run_dir).prompt_style if run_dir else trained_style(checkpoint_dir)
    style = choose_style(evaluation, trained_with, checkpoint_dir)
    fabric = make_fabric(precision, evaluation.seed, cluster=ClusterArgs(devices))
    about = {"checkpoint_dir": checkpoint_dir, "precision": precision}
    with answering_together(fabric) as team:
        tasks = prepare(evaluation) if team.leads else None
        if run_dir is None:
            weights = None if quantize == "none" else quantize
            model = load_pretrained(fabric, checkpoint_dir, weights)
        else:
            model, run = load_finetuned(fabric, checkpoint_dir, run_dir, quantize)
            weights = run.quantize
            about |= {"finetuned_path": run_dir, "method": run.method}
        about |= {"quantize": weights}
        tokenizer = Tokenizer(checkpoint_dir)
        evaluate(fabric, model, tokenizer, tasks=tasks, args=evaluation, style=style, about=about, team=team)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
