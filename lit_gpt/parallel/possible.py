"""What several devices cannot do together, refused by name before anything is loaded; whether they divide a model."""

from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.errors import UserError


def require_possible(args: FinetuneArgs, n_devices: int) -> None:
    """Checks that a run goes with several devices.

    Raises:
        UserError: it does not; the message names the flag.
    """
    if n_devices == 1:
        return
    if args.train.offload_gradients:
        raise UserError("--offload_gradients true is for one device; on several, --strategy fsdp divides the gradients")
    if args.cluster.strategy == "fsdp":
        _require_divisible(args)


def _require_divisible(args: FinetuneArgs) -> None:
    """Checks that a run goes with a model that is divided among devices.

    Raises:
        UserError: it does not.
    """
    if args.train.optimizer != "adamw":
        raise UserError(
            f"--optimizer {args.train.optimizer} does not go with --strategy fsdp: the blocks of its state "
            "would depend on the number of devices; take adamw, whose state fsdp divides"
        )
    if args.precision == "16-mixed":
        raise UserError("--precision 16-mixed does not go with --strategy fsdp; take bf16-mixed, bf16-true or 16-true")
    if args.validation.best_task is not None:
        raise UserError(
            "--best_task does not go with --strategy fsdp: no device has the whole model to answer with; leave it out, "
            "or take --strategy ddp"
        )


def shards(args: FinetuneArgs, fits: bool) -> bool:
    """Returns whether several devices divide the model: as --strategy says, or if one does not hold it.

    Args:
        fits: whether the plan says that one device holds it.

    Raises:
        UserError: they have to, and cannot.
    """
    if args.cluster.strategy != "auto":
        return args.cluster.strategy == "fsdp"
    if not fits:
        _require_divisible(args)
        print("One device does not hold the model: each keeps a part of it (--strategy fsdp)")
    return not fits
