"""What was written for other tools, read back and compared with what it was made from."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.lit import WEIGHTS, open_lit
from lit_gpt.convert.readers import open_source
from lit_gpt.convert.verify import reader, streamed_logits


def largest_difference(config: Config, get: Callable[[str], Tensor], written: Path, ids: list[int]) -> float:
    """Of the logits of a text, between a checkpoint of ours and the folder that was written of it.

    Args:
        get: one of our tensors by name.
        ids: of the text's tokens.
    """
    if (written / WEIGHTS).is_file():
        again, _, get_again = open_lit(written)
    else:
        source = open_source(written)
        again = config_from_hf(source.hf_config, config.name, str(source.config_file))
        get_again = reader(again, source)
    ours, theirs = streamed_logits(config, get, ids), streamed_logits(again, get_again, ids)
    return float((ours[:, : theirs.size(1)] - theirs[:, : ours.size(1)]).abs().max())
