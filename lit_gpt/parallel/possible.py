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
    if args.train.offload_gradients:
        raise UserError("--offload_gradients true is for one device; on several, --strategy fsdp divides the gradients")
