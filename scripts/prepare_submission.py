"""Pack a run as a submission to the NeurIPS 2023 LLM Efficiency Challenge: two Dockerfiles, the server, a manifest.

python scripts/prepare_submission.py --finetuned_path out/lora/open_llama_7b --output_dir submission

docs/submission.md says what is in it and what is refused; scripts/check_submission.py tries it as the organizers do.
"""

from pathlib import Path

from lit_gpt.args.submission import RefusalArgs, SubmissionArgs


def main(
    finetuned_path: Path,
    output_dir: Path = Path("submission"),
    checkpoint_dir: Path | None = None,
    submission: SubmissionArgs = SubmissionArgs(),
    refusals: RefusalArgs = RefusalArgs(),
) -> None:
    """Writes a submission.

    Args:
        finetuned_path: the run's folder, or the weights in it; of any method.
        output_dir: the folder to write, whole or not at all.
        checkpoint_dir: folder of the checkpoint that was finetuned; where the run says it was if not given.
    """
    from lit_gpt.submission.prepare import prepare_submission

    for line in prepare_submission(finetuned_path, checkpoint_dir, output_dir, args=submission, refusals=refusals):
        print(line)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
