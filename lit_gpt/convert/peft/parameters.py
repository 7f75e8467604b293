"""What an adapter has besides updates of linear layers, as parameters with other values.

Embeddings cannot be adapted in a run of ours, and neither can a layer whose own weight is another than the
checkpoint's: their updates are added to their weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_gpt.convert.names import EMBEDDINGS, HEAD, canonical, hf_sources
from lit_gpt.convert.peft.pieces import Base
from lit_gpt.convert.peft.settings import MERGE, Scaling, token_indices
from lit_gpt.errors import UserError
from lit_gpt.families import ARCHITECTURES
from lit_gpt.methods.lora.layer import SMALLEST_NORM

_KEYS = (
    re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_[AB]|[AB]|magnitude_vector)(\.default)?(\.(weight|(?P<bias>bias)))?"),
    re.compile(r"(?P<module>.+)\.token_adapter\.(?P<kind>trainable_tokens)_delta(\.default)?"),
    re.compile(r"(?P<module>.+?)(\.base_layer|\.modules_to_save(\.default)?)?\.(?P<leaf>weight|bias)"),
)  # fmt: skip


@dataclass
class Adapter:
    """The weights of an adapter by the module of theirs that they belong to, in fp32."""

    updates: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Of linear layers: A, B, and magnitude_vector where they are."""
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Updates of embeddings: embedding_A, embedding_B, magnitude_vector."""
    biases: dict[str, Tensor] = field(default_factory=dict)
    """Biases of B."""
    tokens: dict[str, Tensor] = field(default_factory=dict)
    """Rows of tokens."""
    whole: dict[str, Tensor] = field(default_factory=dict)
    """Parameters of theirs, by name, in the dtype that they have."""
    raw: dict[str, str] = field(default_factory=dict)
    """Module -> its name in the adapter, which may be a newer one than that of our tables."""


def read_weights(base: Base, state: Mapping[str, Tensor]) -> Adapter:
    """Sort the weights of an adapter.

    Raises:
        UserError: one that is of no known kind, or of a module that their model has not.
    """
    found = Adapter()
    kinds: dict[str, dict[str, Tensor]] = {}
    for key, x in state.items():
        name = key.removeprefix("base_model.model.")
        if ".lora_velora_" in name:  # of its backward pass
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
        found.raw[module] = groups["module"]
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
    base: Base, adapter: Adapter, theirs: Mapping[str, Any], scaling: Scaling
) -> tuple[dict[str, Tensor], set[str]]:
    """Return the parameters of theirs that are not the checkpoint's, and the modules whose updates are in them.

    Args:
        theirs: adapter_config.json.

    Raises:
        UserError: one has another shape than in the checkpoint, or a setting and the weights contradict each other.
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
        rows = _with_tokens(weight, x, token_indices(theirs, adapter.raw[module]), module)
        changed |= dict.fromkeys(_followers(base, name, adapter), rows)
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
    """Return the weight with other rows for the tokens that were trained.

    Raises:
        UserError: there are more or fewer rows than tokens in the settings, or a token without a row.
    """
    if len(ids) != len(rows) or max(ids, default=0) >= len(weight):
        raise UserError(
            f"the adapter has {len(rows)} rows for tokens of {module} and trainable_token_indices={ids!r}, where the "
            f"checkpoint has {len(weight):,} rows; they do not belong together, save the adapter again"
        )
    together = weight.to(torch.promote_types(weight.dtype, rows.dtype)).clone()
    together[ids] = rows.to(together.dtype)
    return together


def _followers(base: Base, name: str, adapter: Adapter) -> list[str]:
    """Return the parameter itself, and the tied one to which PEFT gives the same rows of tokens."""
    if not base.config.tie_embeddings:
        return [name]
    tied = [hf_sources(ours, base.config)[1][0] for ours in (EMBEDDINGS, HEAD)]
    own = {f"{module}.weight" for module in adapter.tokens} | adapter.whole.keys()
    return [name, *(other for other in tied if name in tied and other != name and other not in own)]


def _merged(weight: Tensor, weights: Mapping[str, Tensor], scale: float, name: str) -> Tensor:
    """Return the weight with its update, fp32: of a linear layer, or of embeddings, whose update is transposed.

    Raises:
        UserError: the update has no A or B, or one of another shape.
    """
    is_embedding = "embedding_A" in weights
    A, B = (weights.get(f"embedding_{x}" if is_embedding else x) for x in "AB")
    if A is None or B is None or B.size(1) != A.size(0):
        raise UserError(f"the adapter's update of {name} is not whole; save it again")
    delta = scale * (B @ A)
    delta = delta.T if is_embedding else delta
    if len(delta) < len(weight):  # a vocabulary that was padded after the training
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
