"""Checkpoints in the layouts of Lit-GPT: ours, that of 2023 and today's litgpt, recognized by their content.

Lit-GPT 2023 kept queries, keys and values interleaved by group in `attn.attn`; litgpt stacks them in `attn.qkv` as we
do.
"""

from pathlib import Path

from torch import Tensor

from lit_gpt.args.folders import WEIGHTS, require_checkpoint
from lit_gpt.checkpoints.configs import read_config
from lit_gpt.checkpoints.four_bits import Reader, dequantizing
from lit_gpt.checkpoints.sizes import require_weights_for
from lit_gpt.config import Config
from lit_gpt.errors import UserError
from lit_gpt.files import Spec, open_state
from lit_gpt.layers.qkv import stack_qkv


def open_lit(checkpoint_dir: Path) -> tuple[Config, dict[str, Spec], Reader]:
    """Returns the configuration, the shapes and dtypes by our names, and a function that reads one tensor by our name.

    Weights that are stored in 4 bits are those that they stand for, in the dtype of the embeddings.

    Raises:
        UserError: no checkpoint, a damaged one, or a configuration that we do not compute.
    """
    require_checkpoint(checkpoint_dir)
    config = read_config(checkpoint_dir)
    remedy = f"python scripts/convert_hf_checkpoint.py --checkpoint_dir {checkpoint_dir}"
    specs, get = dequantizing(*open_state(checkpoint_dir / WEIGHTS, remedy), checkpoint_dir / WEIGHTS)
    require_weights_for(config, specs, checkpoint_dir / WEIGHTS)
    theirs = {name.replace(".attn.attn.", ".attn.qkv."): name for name in specs}

    def read(name: str) -> Tensor:
        if name not in theirs:
            raise UserError(
                f"{checkpoint_dir / WEIGHTS} has no {name}, which the model of its configuration has; they do not "
                f"belong together, make both again with {remedy}"
            )
        x = get(theirs[name])
        return x if theirs[name] == name else stack_qkv(x, config)

    return config, {ours: specs[name] for ours, name in theirs.items()}, Reader(read, get.four_bits, get.kinds)
