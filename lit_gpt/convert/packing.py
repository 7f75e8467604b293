"""Cuts and joins tensors between Hugging Face's layout and ours, by the rules of a weights table."""

import torch
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.families.family import Interleaved, KeyHeads, OutputGate, Part, PerHead, Rule, Separate, Stacked
from lit_gpt.layers.qkv import halves_of_pairs, interleave_qkv, pairs_of_halves, stack_qkv


def pack(rule: Rule, parts: list[Tensor], shape: list[int], config: Config) -> Tensor | None:
    """Returns our tensor of `shape` made from Hugging Face tensors; None if their shapes do not allow it.

    `attn.qkv` stacks [all q | all k | all v] along dim 0.
    """
    match rule:
        case Separate():
            sizes = [[n, *shape[1:]] for n in config.qkv_sizes[: len(rule.names)]]
            if rule.gated and parts[0].size(0) == 2 * config.qkv_sizes[0]:
                parts = [_halves_of_heads(parts[0], config)[0], *parts[1:]]
            if [list(p.shape) for p in parts] != sizes:
                return None
            if rule.pairs:
                parts = [*(halves_of_pairs(p, config) for p in parts[:2]), *parts[2:]]
            return torch.cat(parts)
        case OutputGate():
            return _halves_of_heads(parts[0], config)[1] if parts[0].size(0) == 2 * shape[0] else None
        case KeyHeads():
            return _part_of_key_heads(rule, parts[0], config)
        case Stacked():
            return _rows_of_expert(rule, parts[0], config)
        case Interleaved():
            return stack_qkv(parts[0], config) if list(parts[0].shape) == shape else None
        case Part():
            if parts[0].size(0) != rule.of * shape[0]:
                return None
            x = parts[0][rule.index :: rule.of] if rule.alternating else parts[0].chunk(rule.of)[rule.index]
            return x.clone()  # a view would keep the whole Hugging Face tensor in memory
        case PerHead():
            return torch.stack(parts) if all(list(p.shape) == shape[1:] for p in parts) else None
        case _:
            return parts[0]


def _halves_of_heads(x: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Returns the first and the last half of the rows of each head."""
    heads = x.unflatten(0, (config.n_head, 2, config.head_size))
    return heads[:, 0].flatten(0, 1), heads[:, 1].flatten(0, 1)


def _key_head_sizes(rule: KeyHeads, config: Config) -> dict[str, list[int]]:
    """Returns the rows of a key head that each part has: of qkv, those of queries, keys and values."""
    shared = config.delta_value_heads // config.delta_key_heads
    values = shared * config.delta_value_size
    sizes = {"qkv": [config.delta_key_size, config.delta_key_size, values], "z": [values], "b": [shared], "a": [shared]}
    return {part: sizes[part] for part in rule.parts}


def _part_of_key_heads(rule: KeyHeads, x: Tensor, config: Config) -> Tensor | None:
    """Returns our rows of a tensor that stacks all parts once per key head; None if it has another number of rows."""
    sizes = _key_head_sizes(rule, config)
    rows = [n for of_part in sizes.values() for n in of_part]
    if len(x) != config.delta_key_heads * sum(rows):
        return None
    found = iter(x.unflatten(0, (config.delta_key_heads, -1)).split(rows, 1))
    by_part = {part: [next(found) for _ in of_part] for part, of_part in sizes.items()}
    return torch.cat([piece.flatten(0, 1) for piece in by_part[rule.part]])


def _joined_key_heads(parts: dict[str, Tensor], rule: KeyHeads, config: Config) -> Tensor:
    """Returns the tensor that stacks all parts once per key head; a part that is not there is zeros."""
    K, like, pieces = config.delta_key_heads, next(iter(parts.values())), []
    for part, sizes in _key_head_sizes(rule, config).items():
        x = parts.get(part, like.new_zeros(K * sum(sizes), *like.shape[1:]))
        pieces += [piece.unflatten(0, (K, -1)) for piece in x.split([K * n for n in sizes])]
    return torch.cat(pieces, 1).flatten(0, 1)


def _rows_of_expert(rule: Stacked, stacked: Tensor, config: Config) -> Tensor | None:
    """Returns an expert's rows of a tensor that stacks those of all; None if it is no such tensor."""
    if stacked.size(0) != config.n_expert or stacked.dim() < 2:
        return None
    x = stacked[rule.expert]
    x = x.T if rule.transposed and x.dim() == 2 else x
    n = len(x)
    slices = {"first half": slice(n // 2), "second half": slice(n // 2, n)}
    slices |= {"even": slice(0, n, 2), "odd": slice(1, n, 2)}
    return x[slices.get(rule.rows, slice(n))].clone()  # a view would keep the whole tensor in memory


def unpack(rule: Rule, x: Tensor, config: Config) -> list[Tensor]:
    """Returns the Hugging Face tensors made from one of ours; the inverse of `pack`."""
    match rule:
        case Separate():
            parts = x.split(config.qkv_sizes[: len(rule.names)])
            return [*(pairs_of_halves(p, config) for p in parts[:2]), *parts[2:]] if rule.pairs else list(parts)
        case Interleaved():
            return [interleave_qkv(x, config)]
        case PerHead():
            return list(x)
        case _:
            return [x]


def joined(parts: list[tuple[Rule, Tensor]], config: Config) -> Tensor:
    """Returns the Hugging Face tensor of which these are all parts, by their rules."""
    if any(isinstance(rule, OutputGate) for rule, _ in parts):
        gate, query = (x for _, x in sorted(parts, key=lambda p: isinstance(p[0], Separate)))
        n = config.head_size
        return torch.stack((query.unflatten(0, (-1, n)), gate.unflatten(0, (-1, n))), 1).flatten(0, 2)
    rule = parts[0][0]
    if isinstance(rule, KeyHeads):
        return _joined_key_heads({r.part: x for r, x in parts if isinstance(r, KeyHeads)}, rule, config)
    if not isinstance(rule, Stacked):
        blocks = [x for _, x in sorted(parts, key=lambda part: part[0].index if isinstance(part[0], Part) else 0)]
        alternate = isinstance(rule, Part) and rule.alternating
        return torch.stack(blocks, 1).flatten(0, 1) if alternate else torch.cat(blocks)
    experts: dict[int, dict[str, Tensor]] = {}
    for rule, part in parts:
        assert isinstance(rule, Stacked)
        experts.setdefault(rule.expert, {})[rule.rows] = part
    rows = []
    for _, by_rows in sorted(experts.items()):
        if "even" in by_rows:
            rows.append(torch.stack((by_rows["even"], by_rows["odd"]), 1).flatten(0, 1))
        else:
            rows.append(torch.cat([by_rows[key] for key in ("all", "first half", "second half") if key in by_rows]))
    stacked = torch.stack(rows)
    return stacked.transpose(1, 2).contiguous() if rule.transposed and stacked.dim() == 3 else stacked


def parts_in(rule: Rule, config: Config, is_query: bool) -> int:
    """Returns the number of our tensors that a Hugging Face tensor is made from.

    Args:
        is_query: whether it is the first one that the rule names.
    """
    match rule:
        case Part():
            return rule.of
        case KeyHeads():
            return len(rule.parts)
        case Stacked():
            return rule.n_parts * config.n_expert
        case OutputGate():
            return 2
        case Separate() if rule.gated and is_query:
            return 2
        case _:
            return 1
