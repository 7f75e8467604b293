"""adapter_config.json: what PEFT's settings mean for reading, and those that a run amounts to."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_gpt.args import LoRAArgs
from lit_gpt.config import Config
from lit_gpt.errors import UserError

MERGE = (
    "merge it into its base with PEFT (merge_and_unload), save_pretrained the result with the tokenizer, and take that "
    "folder through scripts/convert_hf_checkpoint.py"
)
_CONVERT = (
    "its base was changed at the start of the training, in a way that the base does not tell; save it where it was "
    "trained with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
)
_REFUSED = {
    "layer_replication": (
        "make a base that has these layers: load the adapter with PEFT, unload() it, put the state_dict into "
        "AutoModelForCausalLM.from_config(its config), save_pretrained that with the tokenizer, convert it with "
        "scripts/convert_hf_checkpoint.py, and write null for it in adapter_config.json"
    ),
    "target_parameters": MERGE,
    "use_bdlora": MERGE,
    "kasa_config": MERGE,
    "monteclora_config": MERGE,
    "arrow_config": "read one of the adapters that it chooses among",
    "alora_invocation_tokens": "it acts on a part of the tokens only, which nothing here does: generate with PEFT",
    "use_qalora": "write false for it in adapter_config.json if the base is not one of GPTQ, where it does nothing",
    "megatron_config": "write null for it in adapter_config.json if the layers are plain ones",
}
"""Settings that change what an adapter computes in a way that nothing here does, and the way out."""
_WITHOUT_EFFECT = {"eva_config", "corda_config", "lora_ga_config", "loftq_config", "velora_config", "runtime_config"}
"""Settings in the form of those that name a variant, which matter while training only."""
_READ_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica", "pissa", "olora")
"""Values of init_lora_weights that leave the base as it is, and those whose change the base itself tells (`starts`)."""
_OTHER_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM")
_MERGEABLE = ("ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA", "FOURIERFT", "HRA", "LN_TUNING", "RANDLORA")
_MERGEABLE += ("TRAINABLE_TOKENS",)
"""Other methods of PEFT that have merge_and_unload."""


@dataclass(frozen=True)
class Scaling:
    """Rank and scale of each module's update, as PEFT takes them from its settings."""

    r: int
    alpha: float
    ranks: Mapping[str, int]
    """Pattern of a module's name -> rank."""
    alphas: Mapping[str, float]
    """Pattern of a module's name -> alpha."""
    is_root: bool
    """rsLoRA: alpha is divided by the root of the rank."""

    def rank(self, module: str) -> int:
        """Return the rank of a module of theirs."""
        return self.ranks.get(_matching(self.ranks, module), self.r)

    def alpha_of(self, module: str) -> float:
        """Return the alpha of a module of theirs."""
        return self.alphas.get(_matching(self.alphas, module), self.alpha)

    def scale(self, module: str) -> float:
        """Return the factor of a module's update."""
        rank = self.rank(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.is_root else rank)


def read_settings(theirs: Mapping[str, Any]) -> Scaling:
    """Return ranks and scales.

    Raises:
        UserError: a setting under which an adapter computes what nothing here does, by name.
    """
    kind = theirs.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"the adapter has peft_type={kind!r}, and LORA is read; "
            + (MERGE if kind in _MERGEABLE else "nothing here computes it: generate with PEFT")
        )
    if theirs.get("task_type") in _OTHER_TASKS:
        raise UserError(
            f"the adapter has task_type={theirs['task_type']!r}: its model does not go on with a text, as all here do"
        )
    for name, way_out in _REFUSED.items():
        if theirs.get(name):
            raise UserError(f"the adapter has {name}={_short(theirs[name])}, which nothing here computes; {way_out}")
    unknown = [n for n in theirs if n.startswith("use_") or n.endswith("_config")]
    for name in sorted(set(unknown) - {"use_dora", "use_rslora", *_WITHOUT_EFFECT}):
        if theirs[name]:
            raise UserError(f"the adapter has {name}={_short(theirs[name])}, which is not known here; {MERGE}")
    start = theirs.get("init_lora_weights")
    if start not in _READ_STARTS:
        raise UserError(f"the adapter has init_lora_weights={start!r}: {_CONVERT}")
    try:
        return Scaling(
            int(theirs.get("r", 8)),
            float(theirs.get("lora_alpha", 8)),
            {str(k): int(v) for k, v in (theirs.get("rank_pattern") or {}).items()},
            alphas={str(k): float(v) for k, v in (theirs.get("alpha_pattern") or {}).items()},
            is_root=bool(theirs.get("use_rslora")),
        )
    except (TypeError, ValueError, AttributeError) as e:
        raise UserError(f"adapter_config.json has a rank or an alpha that is no number ({e}); save it again") from e


def token_indices(theirs: Mapping[str, Any], module: str) -> list[int]:
    """Return the ids of the tokens whose rows of `module`, one of theirs, are trained."""
    indices = theirs.get("trainable_token_indices") or []
    if isinstance(indices, Mapping):
        fitting = [ids for name, ids in indices.items() if f".{module}".endswith(f".{name}")]
        indices = fitting[0] if fitting else []
    return list(indices)


def write_settings(
    config: Config, args: LoRAArgs, ranks: Mapping[str, int | None], is_folded: bool, more: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of adapter_config.json.

    Args:
        ranks: of every linear module of theirs; None has no update.
        is_folded: the scale is in the weights already.
        more: settings that are not those of LoRA.
    """
    is_root = args.lora_scaling == "rslora" and not is_folded
    r = Counter(rank for rank in ranks.values() if rank).most_common(1)[0][0] if any(ranks.values()) else args.lora_r

    def alpha(rank: int) -> float:
        scale = 1 if is_folded else args.scaling
        is_given = rank == args.lora_r and not is_folded
        exact = args.lora_alpha if is_given else scale * (rank**0.5 if is_root else rank)
        return int(exact) if exact == int(exact) else exact

    named = {name: rank for name, rank in _shortened(ranks).items() if rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.hf_repo or None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha(r),
        "lora_dropout": args.lora_dropout,
        "target_modules": sorted(named),
        "rank_pattern": {name: rank for name, rank in named.items() if rank != r},
        "alpha_pattern": {name: alpha(rank) for name, rank in named.items() if rank != r},
        "use_rslora": is_root,
        "use_dora": args.lora_dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        **more,
    }


def _shortened(ranks: Mapping[str, int | None]) -> dict[str, int | None]:
    """Return ranks by the last part of the name where all modules of that name have the same, else by the whole."""
    last = {module: module.rpartition(".")[2] for module in ranks}
    alike = {name for name in last.values() if len({ranks[m] for m in ranks if last[m] == name}) == 1}
    return {last[module] if last[module] in alike else module: rank for module, rank in ranks.items()}


def _matching(patterns: Mapping[str, Any], module: str) -> str:
    """Return the first pattern that means the module, as PEFT's `get_pattern_key` has it: a regex for its end."""
    for pattern in patterns:
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return pattern
        except re.error as e:
            raise UserError(f"adapter_config.json has the pattern {pattern!r}, which is no regex ({e})") from e
    return module


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
