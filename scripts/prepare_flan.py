"""Prepare FLAN (66 tasks, 1.7 million rows) or some of its subsets, with its own test sets, for finetuning.

python scripts/prepare_flan.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --subsets coqa,samsum

Among the subsets are tasks that models are evaluated on: hellaswag, arc_easy, piqa, bool_q, openbookqa and others.
"""

from pathlib import Path

from lit_gpt.args import PrepareArgs


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    destination_path: Path = Path("data/flan"),
    subsets: tuple[str, ...] | None = None,
    validation_file: Path | None = None,
    prepare: PrepareArgs = PrepareArgs(),
) -> None:
    """Prepares FLAN's rows of inputs and targets.

    Args:
        checkpoint_dir: the checkpoint whose tokenizer is used.
        destination_path: folder for the prepared data.
        subsets: names, separated by commas, with or without _10templates; all if not given.
        validation_file: file with rows for validation instead of the subsets' test sets.
    """
    from lit_gpt.data.prepare import schemas
    from lit_gpt.data.prepare.download import flan_files, locate
    from lit_gpt.data.prepare.run import Files, require_ready
    from lit_gpt.data.prepare.run import prepare as prepare_files

    require_ready(destination_path, checkpoint_dir, prepare)  # before a download
    names = None if subsets is None else ",".join(subsets)
    splits = {split: flan_files(names, split) for split in ("train", "test")}
    train = tuple(locate(None, url, name, destination_path) for url, name in splits["train"])
    if validation_file is not None:
        validation = Files((validation_file,))
    else:
        test = tuple(locate(None, url, name, destination_path) for url, name in splits["test"])
        validation = Files(test, schemas.flan)
    prepare_files(Files(train, schemas.flan), validation, destination_path, checkpoint_dir=checkpoint_dir, args=prepare)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
