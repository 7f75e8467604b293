"""Prepare the Alpaca data set (cleaned), or any file of its schema, for finetuning.

python scripts/prepare_alpaca.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b
python scripts/prepare_alpaca.py --checkpoint_dir ... --data_file my.json --destination_path data/my
"""

from pathlib import Path

from lit_gpt.args import PrepareArgs

URL = "https://raw.githubusercontent.com/tloen/alpaca-lora/main/alpaca_data_cleaned_archive.json"


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    destination_path: Path = Path("data/alpaca"),
    data_file: Path | None = None,
    validation_file: Path | None = None,
    data_file_url: str = URL,
    data_file_name: str = "alpaca_data_cleaned_archive.json",
    prepare: PrepareArgs = PrepareArgs(),
) -> None:
    """Prepare a file of Alpaca's schema.

    Args:
        checkpoint_dir: the checkpoint whose tokenizer is used.
        destination_path: folder for the prepared data.
        data_file: a local file to read instead of downloading one.
        validation_file: rows for validation; a part of the rows is held out if not given.
        data_file_url: where to download from.
        data_file_name: what to call the download, in destination_path; it is not fetched again.
    """
    from lit_gpt.data.prepare import prepare as prepare_rows
    from lit_gpt.data.sources import locate, read_alpaca

    source = locate(data_file, data_file_url, data_file_name, destination_path)
    validation_rows = read_alpaca(validation_file) if validation_file else None
    prepare_rows(read_alpaca(source), validation_rows, destination_path, checkpoint_dir, source, prepare)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
