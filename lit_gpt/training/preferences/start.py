"""What a run on preferences starts from: rows of answers that fit its loss, its model, and the reference's figures."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.args.folders import run_folder
from lit_gpt.args.preferences import PreferenceArgs
from lit_gpt.checkpoints.runs import load_finetuned, read_run
from lit_gpt.checkpoints.trained import trained_path
from lit_gpt.data.answers import Answers, judged_alone, read_answers, with_others
from lit_gpt.data.batches import Order
from lit_gpt.data.store import PREFERENCES, Samples
from lit_gpt.errors import UserError
from lit_gpt.lightning import Fabric
from lit_gpt.methods import METHODS
from lit_gpt.methods.lora.layer import LoRALinear
from lit_gpt.model import GPT
from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.training.preferences.reference import ReferenceStore, known_references, made_of
from lit_gpt.training.validation import n_validated

_OF_TRAINING = ("lora_dropout", "lora_plus_ratio")
"""Arguments of a method that change how its weights are trained, and not what they compute."""


def answers_for(
    args: PreferenceArgs, folder: Path, splits: tuple[Samples, Samples], meta: dict[str, Any]
) -> tuple[Answers, Answers]:
    """Returns both splits of a data set of preferences as the rows that the loss takes.

    Raises:
        UserError: the data has labels, and the loss takes pairs.
    """
    train, val = (read_answers(folder, name, split, meta) for name, split in zip(("train", "val"), splits, strict=True))
    if args.loss == "kto":
        apart = 2 if meta[PREFERENCES] == "pairs" else 1  # the other answer to the same prompt would suit it
        train, val = (with_others(judged_alone(split), apart) for split in (train, val))
    elif meta[PREFERENCES] != "pairs":
        raise UserError(f"{folder} has answers with a label, which --loss kto takes; {args.loss} needs pairs")
    return train, val


def as_sft_run(args: FinetuneArgs) -> FinetuneArgs:
    """Returns the arguments with the method of the run that is gone on from, if one is, and says what that changes.

    What has no part in the run's weights, dropout and the learning rates of LoRA+, stays as asked for.

    Raises:
        UserError: there is no such run, or it was made with another method or base weights in another form.
    """
    if args.sft_run is None:
        return args
    run = read_run(run_folder(args.sft_run))
    if run.method != args.method:
        raise UserError(f"--sft_run {args.sft_run} is a run of {run.method}; pass --method {run.method}")
    if args.quantize is not None and args.quantize != run.quantize:
        raise UserError(
            f"--sft_run {args.sft_run} was trained on weights in {run.quantize or 'full precision'}; "
            f"leave --quantize {args.quantize} out"
        )
    asked = asdict(args.method_args)
    method_args = METHODS[run.method].args(**run.method_args | {n: asked[n] for n in _OF_TRAINING if n in asked})
    kept = [f"--{n} {str(x).lower()}" for n, x in asdict(method_args).items() if n in asked and asked[n] != x]
    if kept:
        print(f"As in --sft_run {args.sft_run}, whatever the flags say: {', '.join(kept)}")
    return replace(args, method_args=method_args, quantize=run.quantize)


def load_sft_run(fabric: Fabric, args: FinetuneArgs, sft_run: Path) -> tuple[GPT, str]:
    """Returns the model with the method and the weights of a run in it, and the digest of the base weights.

    Raises:
        UserError: what `load_finetuned` raises.
    """
    model, run = load_finetuned(fabric, args.checkpoint_dir, sft_run, args.quantize)
    if args.method == "full":
        METHODS["full"].inject(model, args.method_args)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.dropout = args.method_args.lora_dropout
            for B in module.lora_B:
                B.lr_factor = args.method_args.lora_plus_ratio  # pyright: ignore[reportAttributeAccessIssue]
    return model, run.base_digest


class Referenced:
    """The data of a run, which gets the log-probabilities of the reference of all rows that the run sees.

    Args:
        data: training and validation samples; only rows of answers get them.
        team: the processes that train together, among which the rows are dealt.
    """

    def __init__(self, fabric: Fabric, args: FinetuneArgs, data: tuple[Samples, Samples], team: Team = ALONE) -> None:
        self.fabric, self.args, self.data, self.team = fabric, args, data, team

    def compute(self, model: GPT, base_digest: str) -> None:
        """Computes what is not known yet, if the loss needs it.

        Args:
            model: the reference.
            base_digest: digest of the checkpoint's weights.
        """
        args, (train, val) = self.args, self.data
        if not isinstance(train, Answers) or not isinstance(val, Answers):
            return
        if args.preference is None or not args.preference.has_reference:
            return
        weights = None
        if args.sft_run is not None:
            weights = trained_path(run_folder(args.sft_run), args.method)
        precision = str(self.fabric._precision.precision)
        made = made_of((train, val), base_digest, args.quantize, precision=precision, weights=weights)
        store = ReferenceStore(args.data_dir, made)
        n_samples = min(len(train), args.train.n_samples(len(train)))
        seen = Order(len(train), n_samples, args.run.seed).indices(0, n_samples)
        n_val = n_validated(len(val), args.train, args.validation)

        settings: dict[str, Any] = {"store": store, "train": args.train, "team": self.team}
        found = known_references(self.fabric, model, train, seen, split="train", **settings)
        found_val = known_references(self.fabric, model, val, np.arange(n_val), split="val", **settings)
        self.data = replace(train, reference=found), replace(val, reference=found_val)
