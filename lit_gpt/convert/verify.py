"""Compares the next-token logits of two checkpoints, computed with one block in memory at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from lit_gpt.args.folders import WEIGHTS
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.config import Config
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.names import EMBEDDINGS, HEAD, config_of, hf_sources, is_fused, is_tied, lit_shapes, stored_names
from lit_gpt.convert.packing import pack
from lit_gpt.convert.readers import Source, open_source
from lit_gpt.layers.per_layer import Carried
from lit_gpt.layers.rope import Rope
from lit_gpt.model import GPT, embedding_factor, finished_logits, visible

_ROWS = 4096
"""Number of rows of the output projection that are upcast to fp32 at a time."""


class Difference(NamedTuple):
    """A summary of how the next-token logits of two models differ, over all positions compared."""

    n_tokens: int
    largest: float
    """Largest difference of a logit."""
    kl: float
    """Mean KL divergence of the second model's next-token distribution from the first's, in nats."""
    agreement: float
    """Fraction of positions at which both models find the same token most likely."""

    def __str__(self) -> str:
        """Returns the figures with their names, the largest difference last."""
        return (
            f"KL divergence {self.kl:.2g} nats a token, {self.agreement:.1%} of next tokens equal, "
            f"largest difference of a logit: {self.largest:.3g}"
        )


def difference_of(before: Tensor, after: Tensor) -> Difference:
    """Returns how two models' logits differ, both (T, V).

    If one vocabulary has more rows than the other, only the common rows are compared.
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


def joined(parts: list[Difference]) -> Difference:
    """Returns the differences over all positions of which each part has some."""
    n = sum(part.n_tokens for part in parts)
    kl, agreement = (sum(getattr(part, name) * part.n_tokens for part in parts) / n for name in ("kl", "agreement"))
    return Difference(n, max(part.largest for part in parts), kl, agreement)


@torch.inference_mode()
def streamed_logits(config: Config, get: Callable[[str], Tensor], ids: list[int]) -> Tensor:
    """Returns the next-token logits of one text in fp32, (T, V).

    Args:
        get: reads one of our tensors by name.
        ids: token ids of the text.
    """
    with torch.device("meta"):
        model = GPT(config)
    positions = torch.arange(len(ids))
    cos_sin = Rope(config).of_layers(positions, len(ids))
    x = get(EMBEDDINGS)[torch.tensor([ids])].float()  # (1, T, C)
    x = x * torch.tensor(embedding_factor(config), dtype=get(EMBEDDINGS).dtype).float()

    def values(module: torch.nn.Module, prefix: str, rows: list[int] | None = None) -> dict[str, Tensor]:
        found = {name: get(f"{prefix}.{name}") for name in module.state_dict()}
        return {name: (x[rows] if rows and "wte" in name else x).float() for name, x in found.items()}

    carried = _carried(model, x, values, ids)
    for i, block in enumerate(model.transformer.h):
        mask = visible(positions, positions, config.sliding_window if config.is_sliding(i) else 0)
        given = (x, *cos_sin[i], mask), {"carried": carried}
        x = functional_call(block, values(block, f"transformer.h.{i}"), *given)
    x = functional_call(model.transformer.ln_f, values(model.transformer.ln_f, "transformer.ln_f"), (x,))[0]
    head = get(EMBEDDINGS if is_tied(HEAD, config) else HEAD)
    logits = torch.cat([F.linear(x, rows.float()) for rows in head.split(_ROWS)], dim=-1)
    if config.lm_head_bias:
        logits = logits + get("lm_head.bias").float()
    return finished_logits(logits, config)


def _carried(model: GPT, x: Tensor, values: Callable[..., dict[str, Tensor]], ids: list[int]) -> Carried | None:
    """Returns what `GPT.carried` does, with only those rows of the table of tokens in fp32 that the text has."""
    if not model.config.per_layer_input_size:
        return model.carried(x, x)
    part = model.transformer.per_layer
    inputs = functional_call(part, values(part, "transformer.per_layer", ids), (torch.arange(len(ids))[None], x))
    return Carried(inputs)


def _reader(config: Config, source: Source) -> Callable[[str], Tensor]:
    """Returns a function that reads one of our tensors by name from a Hugging Face checkpoint."""
    names = stored_names(source.names, config)
    shapes, fused = lit_shapes(config), is_fused(config, names)

    def get(name: str) -> Tensor:
        rule, sources = hf_sources(name, config, fused)
        x = pack(rule, [source.get(names[s]) for s in sources], list(shapes[name]), config_of(name, config))
        assert x is not None, name  # we wrote it
        return x

    return get


def difference_read_back(config: Config, get: Callable[[str], Tensor], written: Path, ids: list[int]) -> Difference:
    """Returns how the logits of a written folder differ from those of the checkpoint that it was written from.

    Args:
        get: reads one of our tensors by name.
        written: the folder in the other format.
        ids: token ids of the text to compare on.
    """
    if (written / WEIGHTS).is_file():
        again, _, get_again = open_lit(written)
    else:
        source = open_source(written)
        again = config_from_hf(source.hf_config, config.name, str(source.config_file))
        get_again = _reader(again, source)
    return difference_of(streamed_logits(config, get, ids), streamed_logits(again, get_again, ids))
