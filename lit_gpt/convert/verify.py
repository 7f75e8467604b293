"""Logits of a checkpoint on disk with one block in memory at a time, to compare what was written with what was read."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from lit_gpt.config import Config
from lit_gpt.convert.names import EMBEDDINGS, HEAD, canonical, hf_sources, is_tied, lit_shapes, pack
from lit_gpt.convert.readers import Source
from lit_gpt.families import ARCHITECTURES
from lit_gpt.model import GPT, softcap, visible
from lit_gpt.rope import Rope

ROWS = 4096
"""Of the output projection, that are in fp32 at a time."""


@torch.inference_mode()
def streamed_logits(config: Config, get: Callable[[str], Tensor], ids: list[int]) -> Tensor:
    """Next-token logits of one text in fp32, (T, V).

    Args:
        get: one of our tensors by name.
    """
    with torch.device("meta"):
        model = GPT(config)
    positions = torch.arange(len(ids))
    turns = Rope(config).of_layers(positions, len(ids))
    x = get(EMBEDDINGS)[torch.tensor([ids])].float()  # (1, T, C)
    if config.scale_embeddings:
        x = x * torch.tensor(config.n_embd**0.5, dtype=get(EMBEDDINGS).dtype).float()

    def values(module: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
        return {name: get(f"{prefix}.{name}").float() for name in module.state_dict()}

    for i, block in enumerate(model.transformer.h):
        mask = visible(positions, positions, config.sliding_window if config.is_sliding(i) else 0)
        x = functional_call(block, values(block, f"transformer.h.{i}"), (x, *turns[i], mask))
    x = functional_call(model.transformer.ln_f, values(model.transformer.ln_f, "transformer.ln_f"), (x,))[0]
    head = get(EMBEDDINGS if is_tied(HEAD, config) else HEAD)
    logits = torch.cat([F.linear(x, rows.float()) for rows in head.split(ROWS)], dim=-1)
    if config.lm_head_bias:
        logits = logits + get("lm_head.bias").float()
    return softcap(logits, config.final_logit_softcapping)


def reader(config: Config, source: Source) -> Callable[[str], Tensor]:
    """A function that gives our tensors out of a Hugging Face checkpoint."""
    names = {canonical(n, ARCHITECTURES[config.architecture]): n for n in source.names}
    shapes = lit_shapes(config)

    def get(name: str) -> Tensor:
        rule, sources = hf_sources(name, config)
        x = pack(rule, [source.get(names[s]) for s in sources], list(shapes[name]), config)
        assert x is not None, name  # we wrote it
        return x

    return get
