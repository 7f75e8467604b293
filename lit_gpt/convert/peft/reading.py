"""Converts a PEFT adapter to one of our runs.

"Ours" are modules and parameters of our model and run, "theirs" those of the Hugging Face model that PEFT adapts.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lit_gpt.args import LoRAArgs, LoRARunArgs
from lit_gpt.config import Config
from lit_gpt.convert.peft.experts import unstacked
from lit_gpt.convert.peft.parameters import Adapter, changed_parameters, read_weights
from lit_gpt.convert.peft.pieces import Base, Piece, all_pieces, flag_of, pieces
from lit_gpt.convert.peft.settings import MERGE, Scaling, read_settings
from lit_gpt.convert.peft.starts import STARTS, follow_tied_start, take_off_starts
from lit_gpt.errors import UserError


def from_peft(
    config: Config,
    settings: Mapping[str, Any],
    state: Mapping[str, Tensor],
    get: Callable[[str], Tensor],
    args: LoRAArgs | None = None,
) -> tuple[LoRAArgs, dict[str, Tensor]]:
    """Returns the arguments and weights of the run that is equivalent to an adapter.

    If each kind of layer is adapted in all blocks or none, with one rank and one alpha, the run is one that the flags
    could have made, and its weights are the adapter's. Otherwise the run lists its updates (`LoRARunArgs.ranks`), and
    the scales are multiplied into B.

    Args:
        settings: content of adapter_config.json.
        state: the adapter's weights.
        get: reads a tensor of the checkpoint.
        args: arguments of the run that `to_peft` converted to this adapter, if one did; the run's exact weights are
            returned if the adapter still has that form.

    Raises:
        UserError: the adapter computes something that our runs cannot, or is of another model.
    """
    scaling = read_settings(settings)
    base = Base(config, get)
    adapter = read_weights(base, unstacked(config, state, base.modules, base.their_shape))
    start = settings.get("init_lora_weights")
    if start in STARTS:
        follow_tied_start(base, adapter, scaling, start)
    changed, merged = changed_parameters(base, adapter, settings, scaling)
    adapter.updates = {module: x for module, x in adapter.updates.items() if module not in merged}
    _check_updates(base, adapter, scaling, bool(settings.get("use_dora")))
    if start in STARTS:
        take_off_starts(base, adapter, scaling, start)
    if args is not None and not changed and not merged:
        original = _original_weights(config, adapter, scaling, args)
        if original is not None:
            return args, original
    args = _arguments(config, settings, adapter, scaling)
    ours = pieces(config, args)
    trained: dict[str, Tensor] = {}
    for piece in ours:
        weights = adapter.updates[piece.theirs]
        factor = scaling.scale(adapter.raw[piece.theirs]) / args.scaling
        n_more = piece.rank - len(weights["A"])
        A = torch.cat((weights["A"], weights["A"].new_zeros(n_more, weights["A"].size(1))))
        B = _gathered(piece, weights["B"], config) * factor
        _put(trained, piece, A, B=torch.cat((B, B.new_zeros(len(B), n_more)), 1), args=args)
        if args.lora_dora:
            magnitudes = _gathered(piece, weights["magnitude_vector"], config)
            trained[f"{piece.path}.lora_magnitude.{piece.index}"] = magnitudes.clone()
    own = _named_in_the_run(base.to_ours(changed), {piece.path for piece in ours})
    if own:
        args = LoRARunArgs(**dict(vars(args), whole=tuple(own)))
    return args, trained | own


def _check_updates(base: Base, adapter: Adapter, scaling: Scaling, has_magnitudes: bool) -> None:
    """Checks the shapes of all updates, and extends those of a padded vocabulary in place.

    Raises:
        UserError: an update is incomplete, or its shape or rank differs from what the model and the settings say.
    """
    adaptable = {piece.theirs for piece in all_pieces(base.config)}
    for module, weights in adapter.updates.items():
        if module not in adaptable:
            raise UserError(f"the adapter changes {module}, which has no updates in a run here; {MERGE}")
        if weights.keys() != {"A", "B", *(["magnitude_vector"] if has_magnitudes else [])}:
            has = ", ".join(sorted(weights))
            raise UserError(f"the adapter has use_dora={has_magnitudes} and of {module} it has {has}; save it again")
        if base.has_vocabulary(f"{module}.weight"):
            _fill_up(base, f"{module}.weight", weights)
        A, B = weights["A"], weights["B"]
        out_features, in_features = base.their_shape(f"{module}.weight")
        r = scaling.rank(adapter.raw[module])
        if A.shape != (r, in_features) or B.shape != (out_features, r):
            raise UserError(
                f"the adapter's {module} has A {list(A.shape)} and B {list(B.shape)}; its settings and "
                f"{base.config.name} make that {[r, in_features]} and {[out_features, r]}"
            )


def _fill_up(base: Base, name: str, weights: dict[str, Tensor]) -> None:
    """Adds neutral rows to B and the magnitudes of a head whose vocabulary was padded after training."""
    n = len(weights["B"])
    if n == base.config.padded_vocab_size:
        return
    more = len(base.rows(name, weights["B"].new_zeros(n, base.config.n_embd))) - n
    weights["B"] = torch.cat((weights["B"], weights["B"].new_zeros(more, weights["B"].size(1))))
    if "magnitude_vector" in weights:
        norms = base.known(name)[n:].float().norm(dim=1)
        weights["magnitude_vector"] = torch.cat((weights["magnitude_vector"], norms))


def _original_weights(config: Config, adapter: Adapter, scaling: Scaling, args: LoRAArgs) -> dict[str, Tensor] | None:
    """Returns the weights of the run that an adapter was made from; None if the adapter has another form by now."""
    ours = pieces(config, args)
    if adapter.updates.keys() != {piece.theirs for piece in ours} or adapter.biases:
        return None
    trained: dict[str, Tensor] = {}
    rest = {module: weights["B"].clone() for module, weights in adapter.updates.items()}
    filled = Counter[str]()
    for piece in ours:
        module, weights = piece.theirs, adapter.updates[piece.theirs]
        columns = slice(filled[module], filled[module] + piece.rank)
        filled[module] += piece.rank
        if len(weights["A"]) < filled[module] or args.lora_dora != ("magnitude_vector" in weights):
            return None
        B = _gathered(piece, weights["B"][:, columns], config)
        rest[module][:, columns] -= piece.spread(B, config)
        _put(
            trained, piece, weights["A"][columns], B=B * (scaling.scale(adapter.raw[module]) / args.scaling), args=args
        )
        if args.lora_dora:
            magnitudes = _gathered(piece, weights["magnitude_vector"], config)
            trained[f"{piece.path}.lora_magnitude.{piece.index}"] = magnitudes.clone()
    more = [adapter.updates[module]["A"][n:] for module, n in filled.items()]  # zeros fill up to a common rank
    is_another = any(x.any() for x in (*rest.values(), *more))  # one piece was trained in the rows of another
    return None if is_another else trained


def _gathered(piece: Piece, x: Tensor, config: Config) -> Tensor:
    rows = piece.gather(x, config)
    assert rows is not None, f"{piece.theirs} was not checked"
    return rows


def _put(trained: dict[str, Tensor], piece: Piece, A: Tensor, B: Tensor, args: LoRAArgs) -> None:
    """Stores A (R, in_features) and B (channels, R) of an update in a run's weights, PiSSA's start separately."""
    path, r = piece.path, piece.layer.lora_A[0].size(0)
    trained[f"{path}.lora_A.{piece.index}"] = A[:r].clone()
    trained[f"{path}.lora_B.{piece.index}"] = B[:, :r].clone()
    if args.lora_init == "pissa":
        for name, x in (("lora_A_start", A[r:]), ("lora_B_start", -B[:, r:])):
            before = [trained[f"{path}.{name}"]] if piece.index else []
            trained[f"{path}.{name}"] = torch.cat([*before, x])


def _arguments(config: Config, settings: Mapping[str, Any], adapter: Adapter, scaling: Scaling) -> LoRAArgs:
    """Returns the arguments of a run with an adapter's updates; those of the flags alone if they can express them.

    Raises:
        UserError: the adapter has no updates and no parameters.
    """
    every = all_pieces(config)
    own = [piece for piece in every if piece.theirs in adapter.updates]
    ranks = {piece.name: len(adapter.updates[piece.theirs]["A"]) for piece in own}
    alphas = {scaling.alpha_of(adapter.raw[module]) for module in adapter.updates}
    flags = {flag_of(piece) for piece in own}
    is_plain = {piece.name for piece in every if flag_of(piece) in flags} == ranks.keys()
    is_plain &= len(set(ranks.values())) == len(alphas) == 1 and min(alphas) > 0
    common: dict[str, Any] = {f"lora_{name}": False for name in ("query", "value")}
    common |= dict.fromkeys(flags or {"lora_query"}, True)
    common |= {"lora_dropout": settings.get("lora_dropout") or 0.0, "lora_dora": bool(settings.get("use_dora"))}
    if is_plain:
        alpha = next(iter(alphas))
        common |= {"lora_alpha": int(alpha) if alpha == math.floor(alpha) else alpha}
        return LoRAArgs(
            lora_r=next(iter(ranks.values())), lora_scaling="rslora" if scaling.is_root else "plain", **common
        )
    r = max(ranks.values(), default=1)
    return LoRARunArgs(lora_r=r, lora_alpha=r, ranks=ranks, **common)


def _named_in_the_run(own: dict[str, Tensor], adapted: set[str]) -> dict[str, Tensor]:
    """Returns parameters by their names in the model with LoRA, where a wrapped layer is called `linear`.

    Raises:
        UserError: a weight belongs to a layer that also has updates.
    """
    named = {}
    for name, x in own.items():
        module, _, leaf = name.rpartition(".")
        if module not in adapted:
            named[name] = x.contiguous()
        elif leaf == "bias":
            named[f"{module}.linear.bias"] = x.contiguous()
        else:
            raise UserError(f"the adapter has a weight for a part of {module} and updates for another; {MERGE}")
    return named
