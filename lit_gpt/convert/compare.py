"""How much two models' next tokens differ; what was written for other tools, read back and compared by it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.lit import WEIGHTS, open_lit
from lit_gpt.convert.readers import open_source
from lit_gpt.convert.verify import reader, streamed_logits


class Difference(NamedTuple):
    """How the next tokens of one model differ from those of another one, over all positions compared."""

    n_tokens: int
    largest: float
    """Largest difference of a logit."""
    kl: float
    """KL divergence of the other's next token from the one's, mean, in nats."""
    agreement: float
    """Part of the positions at which both find the same token most likely."""

    def __str__(self) -> str:
        """The figures with their names, the largest difference last."""
        return (
            f"KL divergence {self.kl:.2g} nats a token, {self.agreement:.1%} of next tokens equal, "
            f"largest difference of a logit: {self.largest:.3g}"
        )


def difference_of(before: Tensor, after: Tensor) -> Difference:
    """What changed from one model's logits to the other's, (T, V) both.

    Where one has more rows in its vocabulary than the other, those that both have are compared.
    """
    n = min(before.size(-1), after.size(-1))
    before, after = before[:, :n], after[:, :n]
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return Difference(
        n_tokens=len(before),
        largest=float((before - after).abs().max()),
        kl=max(float((p.exp() * (p - q)).sum(-1).mean()), 0.0),
        agreement=float((before.argmax(-1) == after.argmax(-1)).float().mean()),
    )


def difference_read_back(config: Config, get: Callable[[str], Tensor], written: Path, ids: list[int]) -> Difference:
    """What changed from a checkpoint of ours to the folder that was written of it, in the logits of a text.

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
    return difference_of(streamed_logits(config, get, ids), streamed_logits(again, get_again, ids))
