"""Evaluate a pretrained model with EleutherAI's lm-evaluation-harness.

python eval/lm_eval_harness.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --precision bf16-true \
    --eval_tasks "[truthfulqa_mc]" --batch_size 4 --save_filepath results.json

The table of scores goes to stdout, everything else to stderr.
"""

from pathlib import Path

from lit_gpt.args import EvalArgs, Precision, Quantization


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    precision: Precision | None = None,
    quantize: Quantization | None = None,
    evaluation: EvalArgs = EvalArgs(),
) -> None:
    """Evaluate a pretrained model.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: keep the weights of the blocks in 4 or 8 bits; in the precision if not given.
    """
    from lit_gpt.checkpoint import load_base, make_fabric
    from lit_gpt.convert.lit import require_checkpoint
    from lit_gpt.evaluation.run import choose_style, evaluate
    from lit_gpt.evaluation.tasks import prepare
    from lit_gpt.tokenizer import Tokenizer

    require_checkpoint(checkpoint_dir)
    style = choose_style(evaluation)
    tasks = prepare(evaluation)
    fabric = make_fabric(precision, evaluation.seed)
    model, _ = load_base(fabric, checkpoint_dir, quantize)
    about = {"checkpoint_dir": checkpoint_dir, "precision": precision, "quantize": quantize}
    evaluate(fabric, model, Tokenizer(checkpoint_dir), tasks, evaluation, style, about)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
