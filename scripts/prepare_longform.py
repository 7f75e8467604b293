"""Prepare LongForm, instructions to long texts, with its own training and test sets, for finetuning.

python scripts/prepare_longform.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b
"""

from pathlib import Path

from lit_gpt.args import PrepareArgs, SourceArgs

URL = "https://raw.githubusercontent.com/akoksal/LongForm/main/dataset"


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    destination_path: Path = Path("data/longform"),
    source: SourceArgs = SourceArgs(data_file_url=f"{URL}/train.json", data_file_name="train.json"),
    prepare: PrepareArgs = PrepareArgs(),
) -> None:
    """Prepares a file with input (the instruction) and output; LongForm itself is validated on its test set.

    Args:
        checkpoint_dir: the checkpoint whose tokenizer is used.
        destination_path: folder for the prepared data.
    """
    from dataclasses import replace

    from lit_gpt.data.prepare import schemas
    from lit_gpt.data.prepare.download import locate
    from lit_gpt.data.prepare.run import prepare_source, require_ready

    if source.data_file is None and source.validation_file is None:
        require_ready(destination_path, checkpoint_dir, prepare)  # before a download
        test = locate(None, f"{URL}/test.json", "test.json", destination_path)
        source = replace(source, validation_file=test)
    prepare_source(schemas.longform, source, destination_path, checkpoint_dir=checkpoint_dir, args=prepare)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
