"""Answer an instruction with a model finetuned by finetune/lora.py, in the prompt style it was trained with.

python generate/lora.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --prompt "how do you make pizza?"

The answer goes to stdout, everything else to stderr.
"""

from pathlib import Path
from typing import Literal

from lit_gpt.args import AskArgs, Precision, Quantization, SamplingArgs


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    finetuned_path: Path | None = None,
    precision: Precision | None = None,
    quantize: Quantization | Literal["none"] | None = None,
    compile: bool | None = None,
    asking: AskArgs = AskArgs(),
    sampling: SamplingArgs = SamplingArgs(max_new_tokens=100),
) -> None:
    """Answers an instruction.

    Args:
        checkpoint_dir: folder of the checkpoint that was finetuned.
        finetuned_path: the run's folder, or the weights in it; out/lora/<name of the checkpoint> if not given.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: quantization of the base weights, or none for no quantization; the training's if not given.
        compile: compile the model, which takes some seconds and makes each token faster; if not given, it is compiled
            on a GPU for 32 or more new tokens.
    """
    from lit_gpt.cli.imports import importing
    from lit_gpt.foreign import start

    start("tokenizers")  # it gets ready while torch is imported
    with importing():
        from lit_gpt.args.folders import default_out_dir
        from lit_gpt.checkpoints.runs import load_finetuned
        from lit_gpt.fabric import make_fabric
        from lit_gpt.generation.answer import loading, print_completion, say_memory
        from lit_gpt.generation.asking import ask
        from lit_gpt.tokenizer import Tokenizer

    fabric = make_fabric(precision, sampling.seed)
    with loading(checkpoint_dir):
        run_dir = finetuned_path or default_out_dir("lora", checkpoint_dir)
        model, run = load_finetuned(fabric, checkpoint_dir, run_dir, quantize)
        tokenizer = Tokenizer(checkpoint_dir)
    asked = ask(asking, run.prompt_style, checkpoint_dir, tokenizer, end_ids=run.data.get("end_ids", ()))
    print_completion(fabric, model, tokenizer, asked=asked, args=sampling, echo=False, compile=compile)
    say_memory()


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main, method="lora")
