"""Serve a model, or several runs over one base, to HELM, lm-eval, OpenAI's clients and a browser.

python scripts/serve.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --runs out/lora/a,out/lora/b

Prints one line with the address once it answers; everything else goes to stderr. docs/serve.md has the clients.
"""

from pathlib import Path
from typing import Literal

from lit_gpt.args import Precision, Quantization, ServeArgs


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    finetuned_path: Path | None = None,
    runs: tuple[Path, ...] = (),
    prompt_style: str | None = None,
    precision: Precision | None = None,
    quantize: Quantization | Literal["none"] | None = None,
    serving: ServeArgs = ServeArgs(),
) -> None:
    """Serves models over HTTP.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        finetuned_path: a run's folder of any method, or the weights in it, which is served in place of the checkpoint.
        runs: folders of LoRA runs on the checkpoint, such as out/lora/a,out/lora/b; each is a model beside the base.
        prompt_style: style in which the checkpoint itself is asked in conversations; its chat template if not given.
            Runs are asked in that of their training.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: quantize the weights of the blocks to 4 or 8 bits, or not (none); if not given, as in the training of
            --finetuned_path, and else not.
    """
    from lit_gpt.cli.imports import importing
    from lit_gpt.errors import UserError
    from lit_gpt.foreign import start

    if runs and finetuned_path is not None:
        raise UserError("--runs are served over one base, and --finetuned_path in its place; pass one of them")
    start("tokenizers")  # both get ready while torch is imported
    start("templates")
    try:
        with importing():
            from lit_gpt.serve.run import serve
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] not in ("fastapi", "uvicorn", "starlette", "prometheus_client", "pydantic"):
            raise
        raise UserError(f'the server needs the package {e.name}; run: pip install -e ".[serve]"') from e
    from lit_gpt.serve.load import What

    what = What(checkpoint_dir, finetuned_path, runs, prompt_style=prompt_style, precision=precision, quantize=quantize)
    serve(what, serving)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
