"""Score a pretrained model on tasks of EleutherAI's lm-eval.

python eval/lm_eval_harness.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \\
    --eval_tasks "[truthfulqa_mc]" --batch_size 4 --save_filepath results.json
"""

from pathlib import Path

from lit_gpt.args import EvalArgs, Precision


def main(
    checkpoint_dir: Path,
    precision: Precision | None = None,
    evaluation: EvalArgs = EvalArgs(),
) -> None:
    """Evaluate a pretrained model.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
    """
    from lit_gpt.checkpoint import load_base, make_fabric
    from lit_gpt.evaluation.run import evaluate
    from lit_gpt.tokenizer import Tokenizer

    fabric = make_fabric(precision, evaluation.seed)
    model, _ = load_base(fabric, checkpoint_dir)
    evaluate(fabric, model, Tokenizer(checkpoint_dir), str(checkpoint_dir), evaluation)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
