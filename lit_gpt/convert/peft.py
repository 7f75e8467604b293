"""LoRA weights between our runs and PEFT's adapters, both directions, by the weights table of an architecture.

A module of theirs may hold several of ours (GPT-NeoX has one for queries, keys and values). Its A then stacks those of
its pieces, and its B has a column block for each, zero in the rows of the others: the rank is the sum of theirs.

Letters: r rank of our updates, R rank of a piece (2 r where there is a start to be taken off).
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_gpt import lora
from lit_gpt.args import LoRAArgs
from lit_gpt.config import Config
from lit_gpt.convert.names import canonical, hf_sources, pack, unpack
from lit_gpt.errors import UserError
from lit_gpt.families import ARCHITECTURES
from lit_gpt.families.family import Part, Rule, Separate
from lit_gpt.lora.layer import LoRALinear
from lit_gpt.model import GPT

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
KEY = re.compile(r"base_model\.model\.(.+)\.lora_(A|B|magnitude_vector)(?:\.default)?(?:\.weight)?")
PLAIN = {"bias": "none", "init_lora_weights": True}
"""Settings of theirs that change what an adapter means, and the value besides none at all that we read."""
UNREAD = ("rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save", "lora_bias", "layer_replication")
UNREAD += ("megatron_config", "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "use_qalora")
"""Settings of theirs that must be absent or empty."""


@dataclass
class Piece:
    """One update of ours, and its place in a module of theirs."""

    path: str
    """Of our layer."""
    index: int
    """Of the update among those of the layer."""
    layer: LoRALinear
    theirs: str
    """Module of theirs."""
    rule: Rule

    @property
    def rows(self) -> slice:
        """Of our layer."""
        return slice(*self.layer.blocks[self.index])

    def spread(self, x: Tensor, config: Config) -> Tensor:
        """Rows of the update as rows of their module, zeros in the others."""
        if isinstance(self.rule, Separate):
            return x
        full = x.new_zeros(self.layer.linear.out_features, *x.shape[1:])
        full[self.rows] = x
        if isinstance(self.rule, Part):
            parts = [full if i == self.rule.index else torch.zeros_like(full) for i in range(self.rule.of)]
            return torch.cat(parts)
        return unpack(self.rule, full, config)[0]

    def gather(self, x: Tensor, config: Config) -> Tensor | None:
        """Inverse of `spread`; None if x has another number of rows."""
        if isinstance(self.rule, Separate):
            return x if x.size(0) == self.rows.stop - self.rows.start else None
        full = pack(self.rule, [x], [self.layer.linear.out_features, *x.shape[1:]], config)
        return None if full is None or full.size(0) != self.layer.linear.out_features else full[self.rows]


def pieces(config: Config, args: LoRAArgs) -> list[Piece]:
    """Every update of a run, without values.

    Raises:
        UserError: their model has no module for one.
    """
    if config.mlp == "moe" and args.lora_mlp:
        raise UserError("PEFT has no linear layers for the experts of a mixture; a run with --lora_mlp cannot be one")
    with torch.device("meta"):
        model = GPT(config)
        lora.inject(model, args)
    found = []
    starts = [sum(config.qkv_sizes[:i]) for i in range(3)]
    for path, layer in model.named_modules():
        if not isinstance(layer, LoRALinear):
            continue
        rule, names = hf_sources(f"{path}.weight", config)
        for index, (start, _) in enumerate(layer.blocks):
            name = names[starts.index(start) if isinstance(rule, Separate) else 0]
            found.append(Piece(path, index, layer, name.removesuffix(".weight"), rule))
    return found


def to_peft(config: Config, args: LoRAArgs, trained: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and settings of the adapter that computes what a run's updates do.

    PiSSA becomes updates of twice the rank, which are added to the base as it is.

    Args:
        trained: the run's weights.

    Raises:
        UserError: their model has no module for one, or magnitudes are trained for a part of a module of theirs.
    """
    ours = pieces(config, args)
    for path, layer in {piece.path: piece.layer for piece in ours}.items():
        prefix = f"{path}."
        values = {n.removeprefix(prefix): x for n, x in trained.items() if n.startswith(prefix)}
        layer.load_state_dict(values, strict=False, assign=True)
    modules: dict[str, list[Piece]] = {}
    for piece in ours:
        modules.setdefault(piece.theirs, []).append(piece)
    aliases = {theirs: newer for newer, theirs in ARCHITECTURES[config.architecture].aliases.items()}
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for module, parts in modules.items():
        prefix = f"base_model.model.{aliases.get(module, module)}."
        factors = [part.layer.factors()[part.index] for part in parts]
        A = torch.cat([A for A, _ in factors])
        B = torch.cat([part.spread(B, config) for part, (_, B) in zip(parts, factors, strict=True)], 1)
        state |= {f"{prefix}lora_A.weight": A, f"{prefix}lora_B.weight": B.contiguous()}
        ranks[prefix.split(".")[-2]] = len(A)
        if args.lora_dora:
            ms = [part.layer.lora_magnitude[part.index].detach() for part in parts]
            if sum(len(m) for m in ms) < len(B):
                raise UserError(f"PEFT has magnitudes for all channels of {module} or for none, and the run for some")
            state[f"{prefix}lora_magnitude_vector"] = sum(p.spread(m, config) for p, m in zip(parts, ms, strict=True))
    return state, settings(config, args, ranks)


def settings(config: Config, args: LoRAArgs, ranks: dict[str, int]) -> dict[str, Any]:
    """adapter_config.json.

    Args:
        ranks: of their modules, by the last part of the name.
    """
    is_root = args.lora_scaling == "rslora"
    r = Counter(ranks.values()).most_common(1)[0][0]

    def alpha(rank: int) -> float:
        exact = args.lora_alpha if rank == args.lora_r else args.scaling * (rank**0.5 if is_root else rank)
        return int(exact) if exact == int(exact) else exact

    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.hf_repo or None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha(r),
        "lora_dropout": args.lora_dropout,
        "target_modules": sorted(ranks),
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {name: alpha(rank) for name, rank in ranks.items() if rank != r},
        "use_rslora": is_root,
        "use_dora": args.lora_dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def from_peft(
    config: Config, theirs: dict[str, Any], state: dict[str, Tensor], args: LoRAArgs | None = None
) -> tuple[LoRAArgs, dict[str, Tensor]]:
    """Arguments and weights of the run that computes what an adapter does.

    Args:
        theirs: adapter_config.json.
        state: the adapter's weights.
        args: of the run that the adapter was made of by `to_peft`, if it was: gives its very weights back.

    Raises:
        UserError: the adapter has something that a run of ours has not, or is of another model.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, x in state.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise UserError(f"the adapter's {key} is no LoRA weight of a linear layer")
        module = canonical(f"{match[1]}.weight", ARCHITECTURES[config.architecture]).removesuffix(".weight")
        found.setdefault(module, {})[match[2]] = x.float()
    is_ours = args is not None
    if args is None:
        args = read_settings(config, theirs, set(found))
    ours = pieces(config, args)
    if missing := [p.theirs for p in ours if p.theirs not in found]:
        raise UserError(f"the adapter leaves out {missing[0]}, and a run here adapts a kind of layer everywhere")
    if unused := sorted(found.keys() - {p.theirs for p in ours}):
        raise UserError(f"the adapter changes {unused[0]}, which has no counterpart in {config.name}")
    trained: dict[str, Tensor] = {}
    seen: Counter[str] = Counter()
    for piece in ours:
        parts = found[piece.theirs]
        n, R = seen[piece.theirs], args.lora_r * (2 if args.lora_init == "pissa" else 1)
        seen[piece.theirs] += 1
        columns = slice(n * R, (n + 1) * R) if is_ours else slice(None)  # theirs share an A: each of ours gets a copy
        B = piece.gather(parts["B"], config) if parts.keys() >= {"A", "B"} else None
        if B is None or parts["A"][columns].shape != (R, piece.layer.linear.in_features) or B[:, columns].size(1) != R:
            raise UserError(f"the adapter's {piece.theirs} has another shape or rank than {config.name} needs")
        add(trained, piece, parts["A"][columns], B[:, columns], args)
        if args.lora_dora:
            m = parts.get("magnitude_vector")
            m = None if m is None else piece.gather(m, config)
            if m is None:
                raise UserError(f"the adapter has no magnitudes that fit {piece.theirs}")
            trained[f"{piece.path}.lora_magnitude.{piece.index}"] = m.clone()
    return args, trained


def add(trained: dict[str, Tensor], piece: Piece, A: Tensor, B: Tensor, args: LoRAArgs) -> None:
    """Put A (R, in_features) and B (channels, R) of an update into a run's weights, the start, if any, taken apart."""
    r, path = args.lora_r, piece.path
    trained[f"{path}.lora_A.{piece.index}"] = A[:r].clone()
    trained[f"{path}.lora_B.{piece.index}"] = B[:, :r].clone()
    if args.lora_init == "pissa":
        for name, x in (("lora_A_start", A[r:]), ("lora_B_start", -B[:, r:])):
            before = [trained[f"{path}.{name}"]] if piece.index else []
            trained[f"{path}.{name}"] = torch.cat([*before, x])


def read_settings(config: Config, theirs: dict[str, Any], modules: set[str]) -> LoRAArgs:
    """The arguments that an adapter stands for.

    Args:
        modules: of theirs that it has weights for.

    Raises:
        UserError: a setting that has no counterpart here, by name.
    """
    if theirs.get("peft_type") != "LORA":
        raise UserError(f"the adapter is of type {theirs.get('peft_type')}, and only LORA is read")
    for name in UNREAD:
        if theirs.get(name):
            raise UserError(f"the adapter has {name}={theirs[name]!r}, which has no counterpart here")
    for name, plain in PLAIN.items():
        if theirs.get(name) not in (None, plain, "gaussian"):
            raise UserError(f"the adapter has {name}={theirs[name]!r}; save it with {name}={plain!r}, as PEFT can")
    names = ("query", "key", "value", "projection", "mlp", "head")
    targets = {f"lora_{name}": True for name in names if not (name == "mlp" and config.mlp == "moe")}
    has = {flag: False for flag in targets}
    for piece in pieces(config, LoRAArgs(**targets)):
        kind = piece.path.split(".")[-2] if "." in piece.path else piece.path
        if piece.path.endswith("attn.qkv"):
            flag = f"lora_{names[piece.index]}"
        else:
            flag = {"attn": "lora_projection", "mlp": "lora_mlp", "lm_head": "lora_head"}[kind]
        has[flag] |= piece.theirs in modules
    return LoRAArgs(
        lora_r=theirs["r"],
        lora_alpha=theirs["lora_alpha"],
        lora_dropout=theirs.get("lora_dropout") or 0.0,
        lora_scaling="rslora" if theirs.get("use_rslora") else "plain",
        lora_dora=bool(theirs.get("use_dora")),
        **{**{"lora_query": False, "lora_value": False}, **has},
    )
