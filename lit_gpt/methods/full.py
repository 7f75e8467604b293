"""Full finetuning: every parameter of the model trains."""

import torch

from lit_gpt.args import FullArgs
from lit_gpt.errors import UserError
from lit_gpt.methods.parts import within
from lit_gpt.model import GPT

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of parameters that an optimizer can update."""


def inject(model: GPT, args: FullArgs, init: bool = True, part: str | None = None) -> None:
    """Lets every parameter of `model` train.

    Args:
        init: ignored, since there are no new parameters; every method's `inject` takes it.
        part: the only part of the model that is changed, of `parts_of`; None is all of it.

    Raises:
        UserError: the model is quantized; weights in 8 or 4 bits are too coarse for small steps.
    """
    for name, parameter in model.named_parameters():
        if not within(name, part):
            continue
        if parameter.dtype not in _DTYPES:
            raise UserError(
                f"full finetuning trains every weight, and {name} is quantized; leave out --quantize, "
                "or train a quantized model with finetune/lora.py"
            )
        parameter.requires_grad = True
