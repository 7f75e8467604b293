"""What several devices cannot do together, refused by name before anything is loaded."""

from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.errors import UserError


def require_possible(args: FinetuneArgs, n_devices: int) -> None:
    """Checks that a run goes with several devices.

    Raises:
        UserError: it does not; the message names the flag.
    """
    if n_devices == 1:
        return
    if args.preference is not None and args.preference.loss == "kto":
        raise UserError("--loss kto takes one device, as it compares the rows of a micro-batch; leave --devices out")
    if args.train.offload_gradients:
        raise UserError("--offload_gradients true is for one device; on several, --strategy fsdp divides the gradients")
    if args.cluster.strategy == "fsdp":
        require_divisible(args)


def require_divisible(args: FinetuneArgs) -> None:
    """Checks that a run goes with a model that is divided among devices.

    Raises:
        UserError: it does not.
    """
    if args.grpo is not None:
        raise UserError(
            "--strategy fsdp does not go with answers that the model draws: no device has the whole model to draw "
            "with; take --strategy ddp"
        )
    if args.sft_run is not None:
        raise UserError("--strategy fsdp does not go on from a run; leave --sft_run out, or take --strategy ddp")
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
