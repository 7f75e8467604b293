"""Translates tensors between Hugging Face names and ours, by the weights table of an architecture, one at a time."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.convert.packing import joined, pack, parts_in, unpack
from lit_gpt.errors import UserError
from lit_gpt.families import ARCHITECTURES
from lit_gpt.families.family import Architecture, PerHead, Rule, Separate, Stacked
from lit_gpt.families.wrappers import text_names
from lit_gpt.files import Spec
from lit_gpt.layer_heads import of_layer, stacked_sizes
from lit_gpt.model import GPT

HEAD, EMBEDDINGS = "lm_head.weight", "transformer.wte.weight"
VOCABULARY = (EMBEDDINGS, HEAD, "lm_head.bias", "transformer.per_layer.wte.weight")
"""Tensors with a row for each token."""
_QKV = "transformer.h.{}.attn.qkv"


def stream_from_hf(
    config: Config,
    available: Iterable[str],
    get: Callable[[str], Tensor],
    dtype: torch.dtype | None = None,
    rows: int | None = None,
    left_out: Collection[str] = (),
) -> Iterator[tuple[str, Tensor]]:
    """Yields each of our tensors that the model needs, in the order in which the Hugging Face tensors are stored.

    A tied head is left out, since it is the embeddings.

    Args:
        config: the configuration of the model, which names its architecture.
        available: tensor names in the checkpoint.
        get: returns one Hugging Face tensor by name, and may read it lazily from disk.
        dtype: dtype to convert to; None keeps that of the checkpoint.
        rows: number of rows of the vocabulary's tensors in the checkpoint, if fewer than the model's; zeros fill the
            rest.
        left_out: names of our tensors that somebody else makes.

    Raises:
        UserError: a tensor is missing, has another shape, holds NaN, or has no counterpart in the model.
    """
    names = stored_names(available, config)
    get = _with_last_kept(get)
    shapes = lit_shapes(config)
    fused = is_fused(config, names)
    wanted = {n: hf_sources(n, config, fused) for n in shapes if not is_tied(n, config)}
    _check_names(config, names, wanted)
    order = {name: i for i, name in enumerate(names)}
    for name in sorted(wanted.keys() - set(left_out), key=lambda n: order[wanted[n][1][0]]):
        rule, sources = wanted[name]
        parts = [get(names[s]) for s in sources]
        shape = list(shapes[name])
        if name in VOCABULARY and rows:
            shape[0] = rows
        x = pack(rule, parts, shape, config_of(name, config))
        if x is None or list(x.shape) != shape:
            stored = " + ".join(f"{s} {list(p.shape)}" for s, p in zip(sources, parts, strict=True))
            raise UserError(f"{config.name}: the shape of {stored} is not that of {name} {shape} in its configuration")
        if not x.is_floating_point():
            raise UserError(
                f"{config.name}: {' + '.join(sources)} holds {str(x.dtype).removeprefix('torch.')}, as quantized "
                "weights do; get the model in 16 or 32 bits"
            )
        if not torch.stack(torch.aminmax(x)).isfinite().all():  # many times faster than asking each value
            raise UserError(
                f"{config.name}: {' + '.join(sources)} holds NaN or infinite values; the file is damaged, get it again"
            )
        if name == EMBEDDINGS and config.tie_embeddings:
            _check_tied(config, names, get, x)
        yield name, fit_rows(name, x if dtype is None else x.to(dtype), config.padded_vocab_size)


def stream_to_hf(
    config: Config, names: Iterable[str], get: Callable[[str], Tensor], rows: int | None = None, fused: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Yields the Hugging Face tensors made from ours; the inverse of `stream_from_hf`.

    A tied head is left out, as in Hugging Face's files.

    Args:
        names: names of our tensors.
        get: returns one of our tensors by name.
        rows: number of rows of the vocabulary's tensors to keep; None keeps all.
        fused: write the experts as a loaded model has them, see `is_fused`.

    Raises:
        UserError: a tensor has another shape than the configuration says.
    """
    waiting: dict[str, list[tuple[Rule, Tensor]]] = {}  # parts of a Hugging Face tensor, until all have come
    shapes = lit_shapes(config)
    for name in names:
        if is_tied(name, config):
            continue
        x = get(name)
        if name not in VOCABULARY and x.shape != (shape := shapes.get(name, x.shape)):
            raise UserError(f"{config.name}: {name} is {list(x.shape)}, not {list(shape)} as in its configuration")
        rule, sources = hf_sources(name, config, fused)
        parts = unpack(rule, fit_rows(name, x, rows), config_of(name, config))
        for source, part in zip(sources, parts, strict=True):
            n_parts = parts_in(rule, config, is_query=source == sources[0])
            if n_parts == 1:
                yield source, part
                continue
            waiting.setdefault(source, []).append((rule, part))
            if len(waiting[source]) == n_parts:
                yield source, joined(waiting.pop(source), config)


def _with_last_kept(get: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    """Returns `get` with the last tensor kept: one that stacks experts is asked for by each of them in turn."""
    last: dict[str, Tensor] = {}

    def read(name: str) -> Tensor:
        if name not in last:
            last.clear()
            last[name] = get(name)
        return last[name]

    return read


def from_hf(
    config: Config, available: Iterable[str], get: Callable[[str], Tensor], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Returns what `stream_from_hf` yields as a whole state dict, with a tied head."""
    state = dict(stream_from_hf(config, available, get, dtype))
    return state | {HEAD: state[EMBEDDINGS]} if config.tie_embeddings else state


def to_hf(config: Config, state: dict[str, Tensor], fused: bool = False) -> dict[str, Tensor]:
    """Returns what `stream_to_hf` yields as a whole state dict; tensors on the meta device give the shapes only."""
    return dict(stream_to_hf(config, state, state.__getitem__, fused=fused))


def plan_from_hf(config: Config, hf_specs: Mapping[str, Spec], dtype: torch.dtype | None = None) -> dict[str, Spec]:
    """Returns the spec of each tensor that `stream_from_hf` will make, and of a tied head, in our model's order.

    Args:
        hf_specs: specs of the tensors in the checkpoint.
        dtype: dtype to convert to; None keeps that of the checkpoint.

    Raises:
        UserError: a tensor is missing.
    """
    dtypes = {name: hf_specs[stored].dtype for name, stored in stored_names(hf_specs, config).items()}
    plan, fused = {}, is_fused(config, dtypes)
    for name, shape in lit_shapes(config).items():
        sources = hf_sources(EMBEDDINGS if is_tied(name, config) else name, config, fused)[1]
        if missing := [source for source in sources if source not in dtypes]:
            raise UserError(f"{config.name}: the checkpoint has no tensor {missing[0]!r} (for {name})")
        together = reduce(torch.promote_types, [dtypes[source] for source in sources])
        plan[name] = Spec(tuple(shape), dtype or together)
    return plan


def is_fused(config: Config, names: Collection[str]) -> bool:
    """Returns whether a checkpoint of these tensors has them as a loaded model has, with all experts in one tensor."""
    a = ARCHITECTURES[config.architecture]
    rules = [rule for ours, rule in a.in_memory.items() if rule != a.weights[ours]]
    stacks = {rule.name for rule in rules if isinstance(rule, Stacked)}
    templates = stacks | {f"{rule}.weight" for rule in rules if isinstance(rule, str)}
    return any(template.format(i) in names for template in templates for i in range(config.n_layer))


def _check_tied(config: Config, names: Mapping[str, str], get: Callable[[str], Tensor], embeddings: Tensor) -> None:
    """Checks that a head in the checkpoint equals the embeddings to which it is tied; raises UserError if not."""
    (source,) = hf_sources(HEAD, config)[1]
    if source in names and not torch.equal(get(names[source]), embeddings):
        raise UserError(
            f"{config.name}: {source} is not the embeddings, with which config.json ties it (tie_word_embeddings); "
            "say false there if the model has a head of its own"
        )


def _check_names(config: Config, found: Iterable[str], wanted: dict[str, tuple[Rule, list[str]]]) -> None:
    """Checks that the checkpoint has exactly the tensors that the model needs; raises UserError if not."""
    needed = {source: name for name, (_, sources) in wanted.items() for source in sources}
    found = set(found)
    if missing := [s for s in needed if s not in found]:
        raise UserError(f"{config.name}: the checkpoint has no tensor {missing[0]!r} (for {needed[missing[0]]})")
    if config.tie_embeddings:
        found -= set(hf_sources(HEAD, config)[1])
    if unread := sorted(found - set(needed)):
        some = ", ".join(unread[:3]) + (" ..." if len(unread) > 3 else "")
        raise UserError(f"{config.name}: {len(unread)} tensors have no place in {config.architecture}: {some}")


def is_tied(name: str, config: Config) -> bool:
    return config.tie_embeddings and name == HEAD


def fit_rows(name: str, x: Tensor, rows: int | None) -> Tensor:
    """Pads a tensor of the vocabulary with zeros, or truncates it, to `rows` rows; returns any other unchanged."""
    if name not in VOCABULARY or rows is None or x.size(0) == rows:
        return x
    return x[:rows] if x.size(0) > rows else torch.cat((x, x.new_zeros(rows - x.size(0), *x.shape[1:])))


def lit_shapes(config: Config) -> dict[str, torch.Size]:
    """Returns the name and shape of every tensor of `GPT(config)`, embeddings before the head; allocates none."""
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in GPT(config).state_dict().items()}
    return dict(sorted(shapes.items(), key=lambda item: item[0].startswith("lm_head")))


def stored_names(available: Iterable[str], config: Config) -> dict[str, str]:
    """Returns the names of the decoder's tensors, as the weights table spells them -> as a checkpoint does.

    Buffers, and what a multimodal checkpoint has besides the decoder, are left out.
    """
    architecture = ARCHITECTURES[config.architecture]
    names = {n: n for n in available} if not config.wrapper else text_names(available)
    found = {canonical(n, architecture): stored for n, stored in names.items() if not n.endswith(architecture.ignore)}
    unused = _unused(config)
    return {n: stored for n, stored in found.items() if n.rpartition(".")[0] not in unused}


def _unused(config: Config) -> set[str]:
    """Returns their modules of keys and values in layers that take those of another layer: files may have them."""
    weights, found = ARCHITECTURES[config.architecture].weights, set()
    for i in range(config.n_layer - config.kv_shared_layers, config.n_layer):
        rule, norm = weights[_QKV], weights.get("transformer.h.{}.attn.norm_k")
        found |= {source.format(i) for source in rule.sources[1:]} if isinstance(rule, Separate) else set()
        found |= {norm.format(i)} if isinstance(norm, str) else set()
    return found


def config_of(name: str, config: Config) -> Config:
    """Returns the configuration with the heads of the layer that one of our tensors is in."""
    layer = _layer_of(name)
    return config if layer is None else of_layer(config, layer)


def _layer_of(name: str) -> int | None:
    found = re.match(r"transformer\.h\.(\d+)\.", name)
    return int(found[1]) if found else None


def canonical(name: str, architecture: Architecture) -> str:
    """Returns `name` as the weights table spells it, with aliases resolved."""
    module, _, parameter = name.rpartition(".")
    return f"{architecture.aliases.get(module, module)}.{parameter}"


def hf_sources(name: str, config: Config, in_memory: bool = False) -> tuple[Rule, list[str]]:
    """Returns the rule of the weights table for one of our tensors, and the Hugging Face tensors that it names.

    `transformer.h.3.mlp.fc.bias` -> ("gpt_neox.layers.{}.mlp...", ["gpt_neox.layers.3.mlp....bias"])

    Args:
        in_memory: name what a loaded model of transformers has, rather than its files.
    """
    module, _, parameter = name.rpartition(".")
    number = re.compile(r"(?<=\.)\d+(?=\.|$)")
    architecture, template = ARCHITECTURES[config.architecture], number.sub("{}", module)
    rule = architecture.in_memory.get(template) if in_memory else None
    rule = rule or architecture.weights[template]
    match rule:
        case str():
            templates = [rule]
        case Stacked():
            numbers = number.findall(module)
            name = rule.name.format(*numbers) + ("" if parameter == "weight" else f"_{parameter}")
            return replace(rule, expert=int(numbers[-1])), [name]
        case PerHead():
            heads = config.n_query_groups if rule.keys else config.n_head
            templates = [rule.template.replace("{head}", str(i)) for i in range(heads)]
        case Separate():
            n = sum(size > 0 for size in stacked_sizes(config, int(number.findall(module)[0])))
            rule = replace(rule, names=rule.names[:n])
            templates = rule.sources
        case _:
            templates = rule.sources
    return rule, [f"{t.format(*number.findall(module))}.{parameter}" for t in templates]
