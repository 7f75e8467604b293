"""Translate state dicts between Hugging Face names and ours, by the weights table of an architecture."""

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.errors import UserError
from lit_gpt.families import ARCHITECTURES
from lit_gpt.families.family import Architecture, Interleaved, Rule, Separate
from lit_gpt.model import GPT


def from_hf(
    config: Config, available: Iterable[str], get: Callable[[str], Tensor], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Our state dict, made by asking for each tensor that the model needs.

    Args:
        config: the model to fill; names its architecture.
        available: names in the checkpoint.
        get: returns one tensor by name; called once for each tensor, so it may read lazily from disk.
        dtype: what to convert to; None keeps theirs.

    Raises:
        UserError: a tensor is missing, has another shape, or belongs to nothing in the model.
    """
    architecture = ARCHITECTURES[config.architecture]
    names = {canonical(n, architecture): n for n in available if not n.endswith(architecture.ignore)}
    unread = set(names)
    out: dict[str, Tensor] = {}
    for name, shape in lit_shapes(config).items():
        if config.tie_embeddings and name == "lm_head.weight":
            out[name] = out["transformer.wte.weight"]
            unread.discard(hf_sources(name, architecture)[1][0])
            continue
        rule, sources = hf_sources(name, architecture)
        if missing := [s for s in sources if s not in names]:
            raise UserError(f"{config.name}: the checkpoint has no tensor {missing[0]!r} (for {name})")
        out[name] = pack(rule, [get(names[s]) for s in sources], config)
        out[name] = out[name] if dtype is None else out[name].to(dtype)
        if out[name].shape != shape:
            raise UserError(
                f"{config.name}: {' + '.join(sources)} has shape {list(out[name].shape)}, "
                f"and {name} of this configuration needs {list(shape)}"
            )
        unread -= set(sources)
    if unread:
        some = ", ".join(sorted(unread)[:3])
        raise UserError(f"{config.name}: {len(unread)} tensors have no place in {architecture.name}: {some} ...")
    return out


def to_hf(config: Config, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `from_hf`, from the same table. A tied head is left out, as Hugging Face's files have it."""
    architecture = ARCHITECTURES[config.architecture]
    out: dict[str, Tensor] = {}
    for name, x in state_dict.items():
        if config.tie_embeddings and name == "lm_head.weight":
            continue
        rule, sources = hf_sources(name, architecture)
        out |= zip(sources, unpack(rule, x, config), strict=True)
    return out


def lit_shapes(config: Config) -> dict[str, torch.Size]:
    """Name and shape of every tensor that `GPT(config)` needs, embeddings before the head; allocates none of them."""
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in GPT(config).state_dict().items()}
    return dict(sorted(shapes.items(), key=lambda item: item[0].startswith("lm_head")))


def canonical(name: str, architecture: Architecture) -> str:
    """The spelling of `name` that the weights table uses, aliases resolved."""
    module, _, parameter = name.rpartition(".")
    return f"{architecture.aliases.get(module, module)}.{parameter}"


def hf_sources(name: str, architecture: Architecture) -> tuple[Rule, list[str]]:
    """The table's row for one of our tensors, and the Hugging Face tensors it names.

    `transformer.h.3.mlp.fc.bias` -> ("gpt_neox.layers.{}.mlp...", ["gpt_neox.layers.3.mlp....bias"])
    """
    module, _, parameter = name.rpartition(".")
    number = re.compile(r"(?<=\.)\d+(?=\.|$)")
    rule = architecture.weights[number.sub("{}", module)]
    sources = [rule] if isinstance(rule, str) else rule.sources
    return rule, [f"{s.format(*number.findall(module))}.{parameter}" for s in sources]


def pack(rule: Rule, parts: list[Tensor], config: Config) -> Tensor:
    """Hugging Face tensors -> ours. `attn.qkv` stacks [all q | all k | all v] along dim 0."""
    match rule:
        case Separate():
            return torch.cat(parts)
        case Interleaved():
            q_per_kv, rest = config.n_head // config.n_query_groups, parts[0].shape[1:]
            x = parts[0].reshape(config.n_query_groups, q_per_kv + 2, config.head_size, *rest)
            return torch.cat([p.reshape(-1, *rest) for p in x.split((q_per_kv, 1, 1), dim=1)])
        case _:
            return parts[0]


def unpack(rule: Rule, x: Tensor, config: Config) -> list[Tensor]:
    """Inverse of `pack`."""
    match rule:
        case Separate():
            return list(x.split(config.qkv_sizes))
        case Interleaved():
            groups, rest = config.n_query_groups, x.shape[1:]
            parts = [p.reshape(groups, -1, config.head_size, *rest) for p in x.split(config.qkv_sizes)]
            return [torch.cat(parts, dim=1).reshape(-1, *rest)]
        case _:
            return [x]
