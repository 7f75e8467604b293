"""What a run starts from: data that fits the model, a folder that is free for it, the model with the method in it."""

from dataclasses import asdict
from pathlib import Path

from lightning.fabric import Fabric

from lit_gpt.args.finetuning import Finetuning
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, read_run, save_run, versions
from lit_gpt.data import store
from lit_gpt.data.compatibility import check_fit
from lit_gpt.layers.compiled import set_compile
from lit_gpt.methods import METHODS
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.training.run.checkpoint_store import Saves
from lit_gpt.training.run.folder import claim_out_dir
from lit_gpt.training.run.resume import checkpoint_to_resume, require_same


def load_data(asked: Finetuning) -> tuple[store.Samples, store.Samples, dict]:
    """Training and validation samples, and what meta.json says of them.

    Raises:
        UserError: no data, or data of another tokenizer or prompt style than the model's or the one asked for.
    """
    train_data, val_data, meta = store.load(asked.data_dir)
    check_fit(meta, asked.data_dir, Tokenizer(asked.checkpoint_dir), asked.run.prompt_style)
    return train_data, val_data, meta


def find_place(asked: Finetuning, saves: Saves) -> Path | None:
    """The checkpoint to go on from; None for a new run, for which the folder has to be free.

    Raises:
        UserError: the folder holds another run, or what is to be gone on from is no checkpoint of it.
    """
    place = checkpoint_to_resume(saves, asked.run.resume) if asked.run.resume else None
    if place is None and not asked.run.overwrite:
        claim_out_dir(asked.out_dir, overwrite=False)
    return place


def load_model(fabric: Fabric, asked: Finetuning, init: bool = True) -> tuple[GPT, str]:
    """The model with the method in it, and the digest of its base's weights. Raises: UserError, as `load_base`.

    Args:
        init: False for a run that goes on, whose weights are put in later.
    """
    set_compile(asked.train.compile)
    model, base_digest = load_base(fabric, asked.checkpoint_dir, asked.quantize)
    METHODS[asked.method].inject(model, asked.method_args, init)
    return model, base_digest


def enter(fabric: Fabric, asked: Finetuning, data: tuple[str, dict], base_digest: str, place: Path | None) -> Run:
    """Make the folder that of this run: from here on, what was there before is gone, or is gone on with.

    Args:
        data: digest of the training samples, and their meta.json.
        place: the checkpoint to go on from.

    Raises:
        UserError: arguments, data or base weights that make it another run than that of `place`.
    """
    data_digest, meta = data
    precision = str(fabric._precision.precision)
    run = Run(
        method=asked.method,
        method_args=asdict(asked.method_args),
        prompt_style=meta["prompt_style"],
        base=str(asked.checkpoint_dir),
        base_digest=base_digest,
        data={"folder": str(asked.data_dir), **meta, "digest": data_digest},
        training=asdict(asked.train) | asdict(asked.validation) | {"seed": asked.run.seed, "precision": precision},
        versions=versions(),
        quantize=asked.quantize,
    )
    if place is not None:
        require_same(run, read_run(place), asked.run.allow_changes)
    elif asked.run.overwrite:  # now that the new run can start
        claim_out_dir(asked.out_dir, overwrite=True)
    save_run(run, asked.out_dir)  # before the first weights, so that those of an interrupted run can be used
    return run
