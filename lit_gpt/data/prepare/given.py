"""Prepares a data set from the rows that --json_path or --dataset names."""

from pathlib import Path

from lit_gpt.args import PrepareArgs
from lit_gpt.args.data import DatasetArgs
from lit_gpt.data.prepare.download import fetched_rows
from lit_gpt.data.prepare.run import Files, prepare, require_ready
from lit_gpt.data.prepare.schemas import Parse
from lit_gpt.data.prepare.tokens import Encoder


def prepare_given(
    path: str | None,
    validation_file: Path | None,
    hub: DatasetArgs,
    folder: Path,
    checkpoint_dir: Path,
    *,
    parse: Parse | None,
    args: PrepareArgs,
    encoder: type[Encoder] = Encoder,
) -> None:
    """Prepares a data set in `folder` from a file, an address or a data set of the hub, downloaded if need be.

    Args:
        parse: the schema of the rows; None recognizes it.

    Raises:
        UserError: see `fetched_rows` and `prepare`.
    """
    require_ready(folder, checkpoint_dir, args)  # before a download, which may take long
    train, validation = (files and Files((files,), parse) for files in fetched_rows(path, validation_file, hub, folder))
    assert train is not None
    prepare(train, validation, folder, checkpoint_dir=checkpoint_dir, args=args, encoder=encoder)
