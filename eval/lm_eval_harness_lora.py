"""Score a model finetuned by finetune/lora.py on tasks of EleutherAI's lm-eval.

python eval/lm_eval_harness_lora.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \\
    --eval_tasks "[truthfulqa_mc]" --batch_size 4 --save_filepath results_lora.json
"""

from pathlib import Path

from lit_gpt.args import EvalArgs, Precision


def main(
    checkpoint_dir: Path,
    finetuned_path: Path | None = None,
    precision: Precision | None = None,
    evaluation: EvalArgs = EvalArgs(),
) -> None:
    """Evaluate a finetuned model.

    Args:
        checkpoint_dir: folder of the checkpoint that was finetuned.
        finetuned_path: the run's folder, or the weights in it; out/lora/<name of the checkpoint> if not given.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
    """
    from lit_gpt.checkpoint import default_out_dir, load_finetuned, make_fabric
    from lit_gpt.evaluation.run import evaluate
    from lit_gpt.tokenizer import Tokenizer

    fabric = make_fabric(precision, evaluation.seed)
    run_dir = finetuned_path or default_out_dir("lora", checkpoint_dir)
    model, _ = load_finetuned(fabric, checkpoint_dir, run_dir)
    evaluate(fabric, model, Tokenizer(checkpoint_dir), str(run_dir), evaluation)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
