"""Continue a prompt with a pretrained model.

python generate/base.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --prompt "Tell me a fun fact:"

The text goes to stdout, everything else to stderr.
"""

from pathlib import Path

from lit_gpt.args import Precision, Quantization, SamplingArgs


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    prompt: str = "What food do llamas eat?",
    num_samples: int = 1,
    precision: Precision | None = None,
    quantize: Quantization | None = None,
    compile: bool | None = None,
    sampling: SamplingArgs = SamplingArgs(max_new_tokens=50),
) -> None:
    """Continue a prompt.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        prompt: text to continue; empty starts from the begin-of-sequence token.
        num_samples: how many continuations to draw.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: keep the weights of the blocks in 4 or 8 bits; in the precision if not given.
        compile: true takes some seconds to make each token faster, false does not; if not given, it is true on a GPU
            from 32 new tokens on.
    """
    from lit_gpt.checkpoint import load_base, make_fabric
    from lit_gpt.generation.answer import loading, print_completion, say_memory
    from lit_gpt.tokenizer import Tokenizer

    fabric = make_fabric(precision, sampling.seed)
    with loading(checkpoint_dir):
        model, _ = load_base(fabric, checkpoint_dir, quantize)
        tokenizer = Tokenizer(checkpoint_dir)
    for _ in range(num_samples):
        print_completion(fabric, model, tokenizer, prompt, sampling, echo=True, compile=compile)
    say_memory()


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
