"""Full finetuning: every parameter of the model trains."""

import torch

from lit_gpt.args import FullArgs
from lit_gpt.errors import UserError
from lit_gpt.model import GPT

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""That an optimizer can move."""


def inject(model: GPT, args: FullArgs, init: bool = True) -> None:
    """Let every parameter of `model` train.

    Args:
        init: of no effect: the first values cost nothing. Every method's `inject` takes it.

    Raises:
        UserError: weights in 8 or 4 bits, which have no room for small steps.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype not in _DTYPES:
            raise UserError(
                f"full finetuning trains every weight, and {name} is quantized; leave out --quantize, "
                "or train a quantized model with finetune/lora.py"
            )
        parameter.requires_grad = True
