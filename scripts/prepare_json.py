"""Prepare a file of rows, local, at a URL or on the Hugging Face hub, for finetuning; its schema is recognized.

python scripts/prepare_json.py --checkpoint_dir ... --json_path my.jsonl
python scripts/prepare_json.py --json_path https://... --columns "{instruction: question, response: answer}"
python scripts/prepare_json.py --checkpoint_dir ... --dataset tatsu-lab/alpaca
"""

from pathlib import Path

from lit_gpt.args import PrepareArgs
from lit_gpt.args.data import DatasetArgs


def main(
    json_path: str | None = None,
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    destination_path: Path = Path("data/json"),
    columns: dict[str, str] | tuple[str, ...] | None = None,
    validation_file: Path | None = None,
    hub: DatasetArgs = DatasetArgs(),
    prepare: PrepareArgs = PrepareArgs(test_split_fraction=0.1),
) -> None:
    """Prepares rows with Alpaca's keys, prompt and completion, messages, conversations, or keys of your own.

    Args:
        json_path: a JSON, JSON-lines, CSV or Parquet file, a URL that begins with http, or a folder of Parquet files
            or of datasets.save_to_disk.
        checkpoint_dir: the checkpoint whose tokenizer is used.
        destination_path: folder for the prepared data.
        columns: keys by their roles: "{instruction: question, response: answer, context: passage, system: persona}", or
            "{conversations: dialog, role: speaker, content: text}", or "{question: stem, choices: options, answer: a}".
        validation_file: file with rows for validation, of the same schema; a part of the rows is held out if not given.
    """
    from lit_gpt.data.prepare.columns import by_columns
    from lit_gpt.data.prepare.given import prepare_given

    parse = by_columns(columns) if columns else None
    prepare_given(
        json_path, validation_file, hub, destination_path, checkpoint_dir=checkpoint_dir, parse=parse, args=prepare
    )


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
