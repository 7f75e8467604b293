"""Prepare the Alpaca data set (cleaned), or any file of its schema, for finetuning.

python scripts/prepare_alpaca.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b
python scripts/prepare_alpaca.py --checkpoint_dir ... --data_file my.json --destination_path data/my
"""

from pathlib import Path

from lit_gpt.args import PrepareArgs, SourceArgs

URL = "https://raw.githubusercontent.com/tloen/alpaca-lora/main/alpaca_data_cleaned_archive.json"


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    destination_path: Path = Path("data/alpaca"),
    source: SourceArgs = SourceArgs(data_file_url=URL, data_file_name="alpaca_data_cleaned_archive.json"),
    prepare: PrepareArgs = PrepareArgs(),
) -> None:
    """Prepares a file of Alpaca's schema.

    Args:
        checkpoint_dir: the checkpoint whose tokenizer is used.
        destination_path: folder for the prepared data.
    """
    from lit_gpt.data.prepare import schemas
    from lit_gpt.data.prepare.run import prepare_source

    prepare_source(schemas.alpaca, source, destination_path, checkpoint_dir=checkpoint_dir, args=prepare)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
