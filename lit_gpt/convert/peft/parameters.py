"""Turns what an adapter has besides updates of linear layers into parameters with new values.

"Ours" are modules and parameters of our model, "theirs" those of the Hugging Face model that PEFT adapts. A run of ours
cannot have updates of embeddings, nor of a layer whose weight differs from the checkpoint's: such updates are added to
the weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_gpt.convert.names import EMBEDDINGS, HEAD, canonical, hf_sources
from lit_gpt.convert.peft.experts import parameter_of
from lit_gpt.convert.peft.pieces import Base
from lit_gpt.convert.peft.settings import MERGE, Scaling, token_indices
from lit_gpt.errors import UserError, shown
from lit_gpt.families import ARCHITECTURES
from lit_gpt.methods.lora.layer import SMALLEST_NORM

_KEYS = (
    re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_[AB]|[AB]|magnitude_vector)(\.default)?(\.(weight|(?P<bias>bias)))?"),
    re.compile(r"(?P<module>.+)\.token_adapter\.(?P<kind>trainable_tokens)_delta(\.default)?"),
    re.compile(r"(?P<module>.+?)(\.base_layer|\.modules_to_save(\.default)?)?\.(?P<leaf>weight|bias)"),
)  # fmt: skip


@dataclass
class Adapter:
    """The weights of an adapter, in fp32, by the name of their module."""

    updates: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Updates of linear layers: A, B, and magnitude_vector if there is one."""
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Updates of embeddings: embedding_A, embedding_B, magnitude_vector."""
    biases: dict[str, Tensor] = field(default_factory=dict)
    """Biases of the B matrices."""
    tokens: dict[str, Tensor] = field(default_factory=dict)
    """Trained rows of single tokens."""
    whole: dict[str, Tensor] = field(default_factory=dict)
    """Whole parameters by their name, in their own dtype."""
    raw: dict[str, str] = field(default_factory=dict)
    """Name of each module or parameter in the adapter's settings, which may be newer than that in our tables."""


def read_weights(base: Base, state: Mapping[str, Tensor]) -> Adapter:
    """Returns the weights of an adapter, sorted by kind.

    Raises:
        UserError: a weight is of an unknown kind, or its module does not exist in the Hugging Face model.
    """
    found = Adapter()
    kinds: dict[str, dict[str, Tensor]] = {}
    for key, x in state.items():
        name = key.removeprefix("base_model.model.")
        if ".lora_velora_" in name:  # used by VeLoRA's backward pass only
            continue
        match = next((m for pattern in _KEYS if (m := pattern.fullmatch(name))), None)
        if match is None:
            raise UserError(f"the adapter's {key} is of no known kind; {MERGE}")
        groups = match.groupdict()
        module = canonical(f"{groups['module']}.weight", ARCHITECTURES[base.config.architecture])
        module = module.removesuffix(".weight")
        if module not in base.modules:
            raise UserError(
                f"the adapter changes {groups['module']}, which has no counterpart in {base.config.name}; if the "
                f"adapter is of this model, {MERGE}"
            )
        found.raw[module] = parameter_of(module, base.modules[module]) or groups["module"]
        if "leaf" in groups:
            found.whole[f"{module}.{groups['leaf']}"] = x
        elif groups["kind"] == "trainable_tokens":
            found.tokens[module] = x
        elif groups.get("bias"):
            found.biases[module] = x.float()
        else:
            kinds.setdefault(module, {})[groups["kind"]] = x.float()
    for module, weights in kinds.items():
        (found.embeddings if "embedding_A" in weights else found.updates)[module] = weights
    return found


def changed_parameters(
    base: Base, adapter: Adapter, settings: Mapping[str, Any], scaling: Scaling
) -> tuple[dict[str, Tensor], set[str]]:
    """Returns their parameters that differ from the checkpoint's, and the modules whose updates are merged into them.

    Args:
        settings: content of adapter_config.json.

    Raises:
        UserError: a shape differs from the checkpoint's, or a setting and the weights contradict each other.
    """
    changed = {}
    for name, x in adapter.whole.items():
        before = base.theirs(name)
        if before is None:
            raise UserError(f"the adapter has {name}, and {base.config.name} has none; {MERGE}")
        x = base.rows(name, x)
        if x.shape != before.shape or not torch.equal(before.to(x.dtype), x):
            changed[name] = x
    for module, x in adapter.tokens.items():
        name = f"{module}.weight"
        weight = changed[name] if name in changed else base.known(name)
        rows = _with_tokens(weight, x, token_indices(settings, adapter.raw[module]), module)
        changed |= dict.fromkeys(_tied_names(base, name, adapter), rows)
    for module, bias in adapter.biases.items():
        name = f"{module}.bias"
        before = changed[name] if name in changed else base.known(name)
        changed[name] = before.float() + bias * scaling.scale(adapter.raw[module])
    merged = set()
    for module, weights in (adapter.embeddings | adapter.updates).items():
        name = f"{module}.weight"
        if module in adapter.updates and name not in changed:
            continue
        before = changed[name] if name in changed else base.known(name)
        changed[name] = _merged(before.float(), weights, scaling.scale(adapter.raw[module]), name)
        merged.add(module)
    return changed, merged


def _with_tokens(weight: Tensor, rows: Tensor, ids: list[int], module: str) -> Tensor:
    """Returns the weight with the rows of the trained tokens replaced.

    Raises:
        UserError: the number of rows differs from that of tokens in the settings, or a token has no row.
    """
    if len(ids) != len(rows) or max(ids, default=0) >= len(weight) or min(ids, default=0) < 0:
        raise UserError(
            f"the adapter has {len(rows)} rows for tokens of {module} and trainable_token_indices={shown(ids)}, where "
            f"the checkpoint has {len(weight):,} rows; they do not belong together, save the adapter again"
        )
    together = weight.to(torch.promote_types(weight.dtype, rows.dtype)).clone()
    together[ids] = rows.to(together.dtype)
    return together


def _tied_names(base: Base, name: str, adapter: Adapter) -> list[str]:
    """Returns the name of a parameter, and of the one tied to it, to which PEFT gives the same rows of tokens."""
    if not base.config.tie_embeddings:
        return [name]
    tied = [hf_sources(our_name, base.config)[1][0] for our_name in (EMBEDDINGS, HEAD)]
    own = {f"{module}.weight" for module in adapter.tokens} | adapter.whole.keys()
    return [name, *(other for other in tied if name in tied and other != name and other not in own)]


def _merged(weight: Tensor, weights: Mapping[str, Tensor], scale: float, name: str) -> Tensor:
    """Returns the weight of a linear layer or of embeddings with its update added, fp32.

    The update of embeddings is transposed.

    Raises:
        UserError: A or B is missing or has another shape.
    """
    is_embedding = "embedding_A" in weights
    A, B = (weights.get(f"embedding_{x}" if is_embedding else x) for x in "AB")
    if A is None or B is None or B.size(1) != A.size(0):
        raise UserError(f"the adapter's update of {name} is not whole; save it again")
    delta = scale * (B @ A)
    delta = delta.T if is_embedding else delta
    if len(delta) < len(weight):  # the vocabulary was padded after training
        delta = torch.cat((delta, delta.new_zeros(len(weight) - len(delta), delta.size(1))))
    if delta.shape != weight.shape:
        raise UserError(f"the adapter's update of {name} has the shape {list(delta.shape)}, not {list(weight.shape)}")
    weight, dim = weight + delta, 0 if is_embedding else 1
    magnitude = weights.get("magnitude_vector")
    if magnitude is None:
        return weight
    norms = weight.norm(dim=dim).clamp(min=SMALLEST_NORM)
    if len(magnitude) < len(norms):
        magnitude = torch.cat((magnitude, norms[len(magnitude) :]))
    return weight * (magnitude / norms).unsqueeze(dim)
