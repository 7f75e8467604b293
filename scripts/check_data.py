"""Check a prepared data set: what a model would learn from it, and what is wrong with it.

python scripts/check_data.py --data_dir data/alpaca
"""

from pathlib import Path

from lit_gpt.args.curation import CheckArgs


def main(
    data_dir: Path = Path("data/alpaca"),
    checkpoint_dir: Path | None = None,
    check: CheckArgs = CheckArgs(),
) -> None:
    """Checks a prepared data set.

    Args:
        data_dir: folder of the prepared data.
        checkpoint_dir: the checkpoint whose tokenizer decodes it; the one it was prepared for if not given.
    """
    from lit_gpt.data.curate.check import check as check_data

    check_data(data_dir, check, checkpoint_dir)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
