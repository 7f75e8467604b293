"""Prepare Alpaca-Libre (Alpaca's schema, answers free of the original's licence) for finetuning.

python scripts/prepare_alpaca_libre.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b
"""

from pathlib import Path

from lit_gpt.args import PrepareArgs, SourceArgs

URL = "https://raw.githubusercontent.com/mobarski/alpaca-libre/main/data/output/alpaca_libre_ok_tasks_v4.json"


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    destination_path: Path = Path("data/alpaca_libre"),
    source: SourceArgs = SourceArgs(data_file_url=URL, data_file_name="alpaca_libre_ok_tasks_v4.json"),
    prepare: PrepareArgs = PrepareArgs(),
) -> None:
    """Prepares a file of Alpaca's schema.

    Args:
        checkpoint_dir: the checkpoint whose tokenizer is used.
        destination_path: folder for the prepared data.
    """
    from lit_gpt.data.prepare import schemas
    from lit_gpt.data.prepare.run import prepare_source

    prepare_source(schemas.alpaca_libre, source, destination_path, checkpoint_dir=checkpoint_dir, args=prepare)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
