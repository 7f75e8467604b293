"""Prepare Databricks' Dolly 15k (or any file with instruction, context and response) for finetuning.

python scripts/prepare_dolly.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b
"""

from pathlib import Path

from lit_gpt.args import PrepareArgs, SourceArgs

URL = "https://huggingface.co/datasets/databricks/databricks-dolly-15k/resolve/main/databricks-dolly-15k.jsonl"


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    destination_path: Path = Path("data/dolly"),
    source: SourceArgs = SourceArgs(data_file_url=URL, data_file_name="databricks-dolly-15k.jsonl"),
    prepare: PrepareArgs = PrepareArgs(test_split_fraction=0.1),
) -> None:
    """Prepares a file of Dolly's schema.

    Args:
        checkpoint_dir: the checkpoint whose tokenizer is used.
        destination_path: folder for the prepared data.
    """
    from lit_gpt.data.prepare import schemas
    from lit_gpt.data.prepare.run import prepare_source

    prepare_source(schemas.dolly, source, destination_path, checkpoint_dir=checkpoint_dir, args=prepare)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
