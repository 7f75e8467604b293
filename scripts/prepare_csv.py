"""Prepare a CSV file (comma, semicolon or tab, with a header) for finetuning.

python scripts/prepare_csv.py --checkpoint_dir ... --csv_path my.csv
python scripts/prepare_csv.py --checkpoint_dir ... --csv_path my.csv --columns "[question, answer]"
python scripts/prepare_csv.py --csv_path my.csv --columns "{instruction: question, response: answer, system: persona}"
"""

from pathlib import Path

from lit_gpt.args import PrepareArgs


def main(
    csv_path: Path,
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    destination_path: Path = Path("data/csv"),
    columns: dict[str, str] | tuple[str, ...] = ("instruction", "input", "output"),
    validation_file: Path | None = None,
    prepare: PrepareArgs = PrepareArgs(test_split_fraction=0.1),
) -> None:
    """Prepares a CSV file.

    Args:
        csv_path: the file.
        checkpoint_dir: the checkpoint whose tokenizer is used.
        destination_path: folder for the prepared data.
        columns: names of the columns with instruction, input and output, or with instruction and output; or a mapping
            of roles to columns, as for prepare_json.py.
        validation_file: CSV file with rows for validation; a part of the rows is held out if not given.
    """
    from lit_gpt.data.prepare.columns import by_columns
    from lit_gpt.data.prepare.run import Files
    from lit_gpt.data.prepare.run import prepare as prepare_files

    parse = by_columns(columns)
    validation = Files((validation_file,), parse) if validation_file else None
    prepare_files(Files((csv_path,), parse), validation, destination_path, checkpoint_dir=checkpoint_dir, args=prepare)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
