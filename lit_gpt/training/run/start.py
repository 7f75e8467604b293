"""What a run starts from: data that fits the model, a free folder, and the model with the method in it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.args.folders import run_folder
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.configs import read_config
from lit_gpt.checkpoints.origin import origin_of, require_undamaged
from lit_gpt.checkpoints.runs import Run, read_run, save_run, versions
from lit_gpt.checkpoints.shares import Shares
from lit_gpt.checkpoints.trained import trained_path
from lit_gpt.data import store
from lit_gpt.data.compatibility import check_compatible, check_lengths, check_vocabulary
from lit_gpt.lightning import Fabric
from lit_gpt.methods import METHODS, reads_base
from lit_gpt.model import GPT
from lit_gpt.parallel.host import host_gather
from lit_gpt.parallel.shards import shard
from lit_gpt.parallel.team import Team
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.training.preferences.start import answers_for, load_sft_run
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.folder import claim_out_dir
from lit_gpt.training.run.progress import file_digest
from lit_gpt.training.run.resume import SFT_RUN, checkpoint_to_resume, require_same


def load_data(args: FinetuneArgs) -> tuple[store.Samples, store.Samples, dict]:
    """Returns training samples, validation samples, and their meta.json.

    Raises:
        UserError: no data, or data of another tokenizer or prompt style than the model's or the one asked for.
    """
    train_data, val_data, meta = read_data(args)
    check_compatible(meta, args.data_dir, Tokenizer(args.checkpoint_dir), args.run.prompt_style)
    config = read_config(args.checkpoint_dir)
    check_vocabulary((train_data, val_data), args.data_dir, config.padded_vocab_size)
    check_lengths((train_data, val_data), args.data_dir, config.block_size)
    return train_data, val_data, meta


def read_data(args: FinetuneArgs) -> tuple[store.Samples, store.Samples, dict]:
    """Returns what `load_data` does, without comparing it with the model's tokenizer.

    Raises:
        UserError: no data, or data of another kind than the run is to learn from.
    """
    train_data, val_data, meta = store.load(args.data_dir, judged=args.preference is not None)
    if args.preference is not None:
        return *answers_for(args.preference, args.data_dir, (train_data, val_data), meta), meta
    return train_data, val_data, meta


def _of_objective(args: FinetuneArgs) -> dict[str, Any]:
    """Returns the arguments of what is minimized, where that is not the loss of next tokens."""
    found: dict[str, Any] = {}
    for kind in (args.preference, args.grpo, args.check):
        found |= asdict(kind) if kind is not None else {}
    return found and found | {"sft_run": args.sft_run}


def find_checkpoint(args: FinetuneArgs, checkpoint_store: CheckpointStore) -> Path | None:
    """Returns the checkpoint to resume from; None for a new run, whose folder has to be free.

    Raises:
        UserError: the folder holds another run, or --resume names no checkpoint of this one.
    """
    checkpoint = checkpoint_to_resume(checkpoint_store, args.run.resume) if args.run.resume else None
    if checkpoint is None and not args.run.overwrite:
        claim_out_dir(args.out_dir, overwrite=False)
    return checkpoint


def load_model(
    fabric: Fabric,
    args: FinetuneArgs,
    checkpoint: Path | None = None,
    at_first: Callable[[GPT, str], object] = lambda model, base_digest: None,
    among: Team | None = None,
) -> tuple[GPT, str]:
    """Returns the model with the method in it, and the digest of the base model's weights.

    Args:
        checkpoint: checkpoint to resume from, whose weights are loaded later.
        at_first: gets the model that the run begins with, and the digest: before its method is injected, or where it
            is sharded, with what was injected, which changes no output yet.
        among: the processes that keep a part of every weight each, and read no other; a block gets the method and is
            divided as soon as it is read. None keeps all of them here.

    Raises:
        UserError: what `load_base` raises, or base weights that were damaged since the run began.
    """
    if args.sft_run is not None:
        model, base_digest = load_sft_run(fabric, args, args.sft_run)
        at_first(model, base_digest)
        return model, base_digest

    if among is not None:
        gather = host_gather(among) if fabric.device.type == "cpu" else None

        def loaded(model: GPT, part: str) -> None:
            METHODS[args.method].inject(model, args.method_args, init=checkpoint is None, part=part)
            shard(model, part, gather)

        shares = Shares(among, all_rows=reads_base(args.method_args))
        model, base_digest = load_base(fabric, args.checkpoint_dir, args.quantize, loaded=loaded, shares=shares)
        at_first(model, base_digest)
    else:
        model, base_digest = load_base(fabric, args.checkpoint_dir, args.quantize)
        at_first(model, base_digest)
    if checkpoint:
        before = read_run(checkpoint)
        require_undamaged(args.checkpoint_dir, base_digest, before.base_digest, before.base_files)
    if among is None:
        METHODS[args.method].inject(model, args.method_args, init=checkpoint is None)
    return model, base_digest


def enter(
    fabric: Fabric,
    args: FinetuneArgs,
    data: tuple[store.Samples, store.Samples, dict],
    base_digest: str,
    checkpoint: Path | None,
) -> Run:
    """Claims the folder for this run and writes its finetuned.json; from here on, an overwritten run is gone.

    Args:
        data: training samples, validation samples, and their meta.json.
        checkpoint: checkpoint to resume from.

    Raises:
        UserError: arguments, data or base weights that make it another run than that of `checkpoint`.
    """
    train_data, val_data, meta = data
    contents = {"train": train_data.contents(), "val": val_data.contents()}
    if args.sft_run is not None:
        contents[SFT_RUN] = file_digest(trained_path(run_folder(args.sft_run), args.method))
    precision = str(fabric._precision.precision)
    run = Run(
        method=args.method,
        method_args=asdict(args.method_args),
        prompt_style=meta["prompt_style"],
        base=str(args.checkpoint_dir),
        base_digest=base_digest,
        data={"folder": str(args.data_dir), **meta, "digest": train_data.digest(), "contents": contents},
        training=asdict(args.train)
        | asdict(args.validation)
        | _of_objective(args)
        | {"seed": args.run.seed, "precision": precision},
        versions=versions(),
        quantize=args.quantize,
        base_files=origin_of(args.checkpoint_dir),
    )
    if checkpoint is not None:
        require_same(run, read_run(checkpoint), args.run.allow_changes)
    elif args.run.overwrite:  # now that the new run can start
        claim_out_dir(args.out_dir, overwrite=True)
    save_run(run, args.out_dir)  # before the first weights, so that those of an interrupted run can be used
    return run
