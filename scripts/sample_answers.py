"""Sample answers of a model to the prompts of a file, and grade them: rows and pairs to train on (docs/preferences.md).

python scripts/sample_answers.py --checkpoint_dir ... --finetuned_path out/lora/... --json_path rows.json --checker json
"""

from pathlib import Path
from typing import Literal

from lit_gpt.args import Precision, Quantization
from lit_gpt.args.rollouts import CheckerArgs, KeepArgs, SampleArgs


def main(
    json_path: str,
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    finetuned_path: Path | None = None,
    destination_path: Path = Path("data/answers"),
    columns: dict[str, str] | None = None,
    prompt_style: str | None = None,
    precision: Precision | None = None,
    quantize: Quantization | Literal["none"] | None = None,
    overwrite: bool = False,
    check: CheckerArgs = CheckerArgs(),
    sample: SampleArgs = SampleArgs(),
    keep: KeepArgs = KeepArgs(),
) -> None:
    """Samples and grades k answers to each prompt.

    Args:
        json_path: file of rows, as for scripts/prepare_json.py; the answer of a row is what the checker expects.
        checkpoint_dir: folder of a converted checkpoint.
        finetuned_path: run that answers; the checkpoint if not given.
        destination_path: folder for answers.jsonl, rows.jsonl and pairs.jsonl.
        columns: keys by their roles, as for scripts/prepare_json.py.
        prompt_style: texts put around the prompt; if not given, those of the training of the run or of the merged
            checkpoint, or else plain, which puts none.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: quantize the weights of the blocks to 4 or 8 bits, or not (none); if not given, a run is quantized as
            in its training, and a checkpoint is not.
        overwrite: replace the answers that the folder holds.
    """
    from lit_gpt.fabric import make_fabric
    from lit_gpt.rollouts.run import Answering, sample_answers
    from lit_gpt.rollouts.written import require_no_answers

    require_no_answers(destination_path, overwrite)
    answering = Answering(checkpoint_dir, finetuned_path, prompt_style, quantize)
    fabric = make_fabric(precision, sample.seed)
    sample_answers(
        fabric, answering, Path(json_path), destination_path, columns=columns, check=check, sample=sample, keep=keep
    )


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
