"""Converts one of our runs to a PEFT adapter.

"Ours" are modules and parameters of our model and run, "theirs" those of the Hugging Face model that PEFT adapts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_gpt.args import LoRAArgs
from lit_gpt.config import Config
from lit_gpt.convert.peft.experts import parameter_of, require_adaptable, sources_in_memory, stacked
from lit_gpt.convert.peft.pieces import Base, Piece, pieces
from lit_gpt.convert.peft.settings import write_settings
from lit_gpt.errors import UserError
from lit_gpt.families import ARCHITECTURES


def to_peft(
    config: Config,
    args: LoRAArgs,
    trained: dict[str, Tensor],
    get: Callable[[str], Tensor] | None = None,
    fold_scale: bool = False,
    rows: int | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the weights and settings of the adapter that is equivalent to a run.

    PiSSA becomes updates of twice the rank, which are added to the unchanged base.

    Args:
        trained: the run's weights.
        get: reads a tensor of the checkpoint; needed for a run that has parameters of its own besides the updates.
        fold_scale: multiply the scale into B and pad all updates with zeros to the highest rank, so that tools that
            ignore alpha, rsLoRA and patterns compute the same.
        rows: number of rows of the vocabulary in the model that the adapter is for; None is the checkpoint's.

    Raises:
        UserError: magnitudes are trained for a part of one of their modules, or for experts.
    """
    modules: dict[str, list[Piece]] = {}
    for piece in _with_values(pieces(config, args), trained):
        modules.setdefault(piece.theirs, []).append(piece)
    updates = {module: _update(module, parts, config, args) for module, parts in modules.items()}
    if fold_scale:
        r = max((len(weights["A"]) for weights in updates.values()), default=args.lora_r)
        updates = {module: _folded(weights, args.scaling, r) for module, weights in updates.items()}
    base = Base(config, get or (lambda name: torch.empty(0)))
    parameters = {m: name for m, ours in base.modules.items() if (name := parameter_of(m, ours))}
    linear = [m for m, ours in base.modules.items() if m not in parameters and any(x in base.linear for x in ours)]
    if not updates:  # PEFT refuses an adapter without updates
        out_features, in_features = base.their_shape(f"{linear[0]}.weight")
        updates[linear[0]] = {"A": torch.zeros(1, in_features), "B": torch.zeros(out_features, 1)}
    state: dict[str, Tensor] = {}
    more: dict[str, Any] = {}
    if args.whole:
        own = {name.replace(".linear.", "."): trained[name] for name in args.whole}
        state, more = _parameters(base, own, 1 if fold_scale else args.scaling, set(modules))
    require_adaptable(updates, config)
    experts = stacked(updates, config)
    for module, weights in updates.items():
        if parameters.get(module, f"{module}.weight") != f"{module}.weight":  # an expert, which is in a stack
            continue
        state |= {f"{module}.lora_{kind}.weight": x for kind, x in weights.items() if kind != "magnitude_vector"}
        if "magnitude_vector" in weights:
            state[f"{module}.lora_magnitude_vector"] = weights["magnitude_vector"]
    newer = {theirs: name for name, theirs in ARCHITECTURES[config.architecture].aliases.items()}
    ranks = {newer.get(m, m): len(updates[m]["A"]) if m in updates else None for m in linear}
    if more.get("modules_to_save"):
        whole: set[str] = more["modules_to_save"]
        more["modules_to_save"] = sorted(newer.get(module, module) for module in whole)
    adapted: dict[str, int | None] = {}
    for module, name in parameters.items():
        rank = len(updates[module]["A"]) if module in updates else 0
        adapted[name] = max(adapted.get(name) or 0, rank) or None
    settings = write_settings(config, args, ranks, adapted, is_folded=fold_scale, more=more)
    return _keys(base, state, newer, rows) | experts, settings


def _keys(base: Base, state: dict[str, Tensor], newer: dict[str, str], rows: int | None) -> dict[str, Tensor]:
    """Returns an adapter's weights by PEFT's keys, with the vocabulary's tensors truncated to `rows` rows.

    Args:
        state: weights by the name of their module and what follows it in the key.
        newer: name of a module in today's transformers, by its name in our tables.
    """
    found = {}
    for name, x in state.items():
        module = max((m for m in base.modules if name.startswith(f"{m}.")), key=len)
        rest = name.removeprefix(f"{module}.")
        is_truncated = rows and not rest.startswith("lora_A") and base.has_vocabulary(f"{module}.weight")
        key = f"base_model.model.{newer.get(module, module)}.{rest}"
        found[key] = (x[:rows] if is_truncated else x).clone(memory_format=torch.contiguous_format)
    return found


def _with_values(ours: list[Piece], trained: dict[str, Tensor]) -> list[Piece]:
    for path, layer in {piece.path: piece.layer for piece in ours}.items():
        values = {n.removeprefix(f"{path}."): x for n, x in trained.items() if n.startswith(f"{path}.lora_")}
        layer.load_state_dict(values, strict=False, assign=True)
    return ours


def _update(module: str, parts: list[Piece], config: Config, args: LoRAArgs) -> dict[str, Tensor]:
    """Returns A, B and the magnitudes of one of their modules.

    Raises:
        UserError: magnitudes are trained for a part of the module.
    """
    factors = [part.layer.factors()[part.index] for part in parts]
    Bs = [part.spread(B, config) for part, (_, B) in zip(parts, factors, strict=True)]
    if all(torch.equal(A, factors[0][0]) for A, _ in factors[1:]):  # an adapter read from PEFT has one A for all pieces
        weights = {"A": factors[0][0], "B": torch.stack(Bs).sum(0)}
    else:
        weights = {"A": torch.cat([A for A, _ in factors]), "B": torch.cat(Bs, 1)}
    if not args.lora_dora:
        return weights
    ms = [part.layer.lora_magnitude[part.index].detach() for part in parts]
    if sum(len(m) for m in ms) < len(weights["B"]):
        raise UserError(f"PEFT has magnitudes for all channels of {module} or for none, and the run for some")
    spread = [part.spread(m, config) for part, m in zip(parts, ms, strict=True)]
    return weights | {"magnitude_vector": torch.stack(spread).sum(0)}


def _folded(weights: dict[str, Tensor], scale: float, r: int) -> dict[str, Tensor]:
    A, B = weights["A"], weights["B"] * scale
    A = torch.cat((A, A.new_zeros(r - len(A), A.size(1))))
    return weights | {"A": A, "B": torch.cat((B, B.new_zeros(len(B), r - B.size(1))), 1)}


def _parameters(base: Base, own: dict[str, Tensor], scale: float, adapted: set[str]) -> tuple[dict, dict[str, Any]]:
    """Returns the adapter's weights for the whole parameters of a run, by name, and the settings for them.

    Whole modules become modules_to_save, other biases those that PEFT trains with bias="all", and biases that the base
    lacks become biases of B.

    Args:
        own: the parameters, by the names of the base.
        scale: scale of the updates, and so of the biases of B.
        adapted: their modules that have updates.
    """
    reader = Base(base.config, base.get, own)
    state: dict[str, Tensor] = {}
    saved: set[str] = set()
    settings: dict[str, Any] = {}
    names = {source: name for name in own for source in sources_in_memory(name, base.config)[1]}
    for name, ours in names.items():
        module, _, leaf = name.rpartition(".")
        if ours not in base.shapes:
            if module in adapted:  # otherwise zeros, from rows of our layer that belong to another module
                state[f"{module}.lora_B.bias"] = reader.known(name) / scale
                settings["lora_bias"] = True
        elif leaf == "bias" and f"{module}.weight" not in names:
            state[f"{module}.base_layer.bias" if module in adapted else name] = reader.known(name)
            settings["bias"] = "all"
        else:
            saved.add(module)
            leaves = [x for x in ("weight", "bias") if f"{ours.rpartition('.')[0]}.{x}" in base.shapes]
            state |= {f"{module}.{x}": reader.known(f"{module}.{x}") for x in leaves}
    return state, settings | {"modules_to_save": saved or None}
