"""Prepare a JSON or JSON-lines file, here or at an address, for finetuning; its schema is recognised.

python scripts/prepare_json.py --checkpoint_dir ... --json_path my.jsonl
python scripts/prepare_json.py --json_path https://... --columns "{instruction: question, response: answer}"
"""

from pathlib import Path

from lit_gpt.args import PrepareArgs


def main(
    json_path: str,
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    destination_path: Path = Path("data/json"),
    columns: dict[str, str] | None = None,
    validation_file: Path | None = None,
    prepare: PrepareArgs = PrepareArgs(test_split_fraction=0.1),
) -> None:
    """Prepare a file of Alpaca's keys, prompt and completion, messages, conversations, or keys of its own.

    Args:
        json_path: a file, or an address that begins with http; CSV files are read too.
        checkpoint_dir: the checkpoint whose tokenizer is used.
        destination_path: folder for the prepared data.
        columns: names of the keys with instruction, response and, if there are any, context and system.
        validation_file: rows for validation, of the same schema; a part of the rows is held out if not given.
    """
    from lit_gpt.convert.lit import require_checkpoint
    from lit_gpt.data.download import fetched
    from lit_gpt.data.prepare import Files
    from lit_gpt.data.prepare import prepare as prepare_files
    from lit_gpt.data.schemas import mapped

    require_checkpoint(checkpoint_dir)  # before a download
    parse = mapped(columns) if columns else None
    path = fetched(json_path, destination_path)
    validation = Files((validation_file,), parse) if validation_file else None
    prepare_files(Files((path,), parse), validation, destination_path, checkpoint_dir, prepare)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
