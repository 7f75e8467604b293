"""Look for evaluation questions in a prepared data set, and write it without them.

python scripts/check_contamination.py --data_dir data/alpaca --task_data eval_sets/
python scripts/check_contamination.py --data_dir data/alpaca --task_data "{truthfulqa_mc1: truthfulqa.jsonl}" \
    --drop true --destination_path data/alpaca_clean
"""

from pathlib import Path

from lit_gpt.args.curation import ContaminationArgs


def main(
    contamination: ContaminationArgs, data_dir: Path = Path("data/alpaca"), checkpoint_dir: Path | None = None
) -> None:
    """Looks for evaluation questions in a prepared data set.

    Args:
        data_dir: folder of the prepared data.
        checkpoint_dir: the checkpoint whose tokenizer decodes it; the one it was prepared for if not given.
    """
    from lit_gpt.data.curate.contamination import check_contamination

    check_contamination(data_dir, contamination, checkpoint_dir)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
