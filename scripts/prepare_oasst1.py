"""Prepare OpenAssistant's conversation trees (oasst1, or any file of that export) for finetuning.

python scripts/prepare_oasst1.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --language en
"""

from pathlib import Path
from typing import Literal

from lit_gpt.args import PrepareArgs, SourceArgs

FILE = "2023-04-12_oasst_ready.trees.jsonl.gz"
URL = f"https://huggingface.co/datasets/OpenAssistant/oasst1/resolve/main/{FILE}"


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    destination_path: Path = Path("data/oasst1"),
    paths: Literal["best", "all"] = "best",
    language: str | None = None,
    source: SourceArgs = SourceArgs(data_file_url=URL, data_file_name=FILE),
    prepare: PrepareArgs = PrepareArgs(test_split_fraction=0.05),
) -> None:
    """Prepares conversation trees: each path of good messages that ends with an answer is a conversation.

    Args:
        checkpoint_dir: the checkpoint whose tokenizer is used.
        destination_path: folder for the prepared data.
        paths: best follows the best-ranked reply to each message, one path per tree; all takes every path.
        language: language of the trees to keep (en, de, es ...); all languages if not given.
    """
    from lit_gpt.data.prepare.run import prepare_source
    from lit_gpt.data.prepare.trees import Trees

    prepare_source(Trees(paths, language), source, destination_path, checkpoint_dir=checkpoint_dir, args=prepare)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
