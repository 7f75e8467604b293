"""Prepare LIMA, 1,030 hand-picked conversations, for finetuning.

HF_TOKEN=... python scripts/prepare_lima.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b

The data set is gated; accept its terms with your account first: https://huggingface.co/datasets/GAIR/lima
"""

from pathlib import Path

from lit_gpt.args import PrepareArgs, SourceArgs

URL = "https://huggingface.co/datasets/GAIR/lima/resolve/main/train.jsonl"


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    destination_path: Path = Path("data/lima"),
    include_multiturn_conversations: bool = False,
    access_token: str | None = None,
    source: SourceArgs = SourceArgs(data_file_url=URL, data_file_name="train.jsonl"),
    prepare: PrepareArgs = PrepareArgs(test_split_fraction=0.1),
) -> None:
    """Prepares a file of LIMA's schema.

    Args:
        checkpoint_dir: the checkpoint whose tokenizer is used.
        destination_path: folder for the prepared data.
        include_multiturn_conversations: keep all turns of a conversation instead of its first exchange only.
        access_token: token of that account; HF_TOKEN if not given.
    """
    import os

    from lit_gpt.data.prepare import schemas
    from lit_gpt.data.prepare.run import prepare_source

    parse = schemas.lima if include_multiturn_conversations else schemas.lima_first
    token = access_token or os.environ.get("HF_TOKEN")
    prepare_source(
        parse, source, folder=destination_path, checkpoint_dir=checkpoint_dir, args=prepare, access_token=token
    )


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
