"""Continue a prompt with a pretrained model, or answer it with a merged one, in the prompt style it was trained with.

python generate/base.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --prompt "Tell me a fun fact:"

The text goes to stdout, everything else to stderr.
"""

from pathlib import Path

from lit_gpt.args import AskArgs, Precision, Quantization, SamplingArgs


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    prompt_style: str | None = None,
    num_samples: int = 1,
    precision: Precision | None = None,
    quantize: Quantization | None = None,
    compile: bool | None = None,
    asking: AskArgs = AskArgs(),
    sampling: SamplingArgs = SamplingArgs(max_new_tokens=50),
) -> None:
    """Continues a prompt.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        prompt_style: texts put around the prompt; plain puts none. If not given, the style of a merged checkpoint's
            training, or else plain.
        num_samples: number of continuations to generate.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: quantize the weights of the blocks to 4 or 8 bits; not quantized if not given.
        compile: compile the model, which takes some seconds and makes each token faster; if not given, it is compiled
            on a GPU for 32 or more new tokens.
    """
    from lit_gpt.cli.imports import importing
    from lit_gpt.foreign import start

    start("tokenizers")  # it gets ready while torch is imported
    with importing():
        from lit_gpt.checkpoints.base import load_pretrained
        from lit_gpt.fabric import make_fabric
        from lit_gpt.generation.answer import loading, print_completion, say, say_memory
        from lit_gpt.generation.asking import ask
        from lit_gpt.merge.record import trained_style
        from lit_gpt.tokenizer import Tokenizer

    style = prompt_style or trained_style(checkpoint_dir) or "plain"
    fabric = make_fabric(precision, sampling.seed)
    with loading(checkpoint_dir):
        model = load_pretrained(fabric, checkpoint_dir, quantize)
        tokenizer = Tokenizer(checkpoint_dir)
    asked = ask(asking, style, checkpoint_dir, tokenizer)
    if style != "plain":
        say(
            f"Prompt style: {style}" + ("" if prompt_style else ", that of the training; --prompt_style plain has none")
        )
    how = {"echo": style == "plain", "compile": compile, "num_samples": num_samples}
    print_completion(fabric, model, tokenizer, asked=asked, args=sampling, **how)
    say_memory()


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
