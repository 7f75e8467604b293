"""Check a submission as the organizers do: build, start, wait, ask what HELM asks, and look at the clock.

python scripts/check_submission.py --submission_dir submission --device a100-40gb

Ends with the first thing that fails. docs/submission.md says what is done where there is no Docker.
"""

from pathlib import Path

from lit_gpt.args.submission import CheckArgs


def main(
    submission_dir: Path = Path("submission"),
    trained: Path | None = None,
    allow_secrets: tuple[str, ...] = (),
    check: CheckArgs = CheckArgs(),
) -> None:
    """Checks a submission.

    Args:
        submission_dir: the folder that scripts/prepare_submission.py wrote.
        trained: a run that train.sh made; only compares it with the submitted one, and starts nothing.
        allow_secrets: files of the submission that are not searched for secrets.
    """
    from lit_gpt.args.folders import require_there

    require_there("submission_dir", submission_dir)
    if trained is not None:
        from lit_gpt.submission.check.trained import compare_trained

        for line in compare_trained(submission_dir, trained):
            print(line)
        return
    from lit_gpt.submission.check.run import check_submission

    check_submission(submission_dir, check, allow_secrets)
    print("The submission does what the challenge asks, as far as this machine can tell.")


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
