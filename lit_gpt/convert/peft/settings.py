"""Reads and writes adapter_config.json, the settings of a PEFT adapter.

"Their" modules are those of the Hugging Face model that PEFT adapts.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lit_gpt.args import LoRAArgs
from lit_gpt.config import Config
from lit_gpt.errors import UserError, shown
from lit_gpt.records import require_types

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
    "use_bdlora": MERGE,
    "kasa_config": MERGE,
    "monteclora_config": MERGE,
    "arrow_config": "read one of the adapters that it chooses among",
    "alora_invocation_tokens": "it acts on a part of the tokens only, which nothing here does: generate with PEFT",
    "use_qalora": "write false for it in adapter_config.json if the base is not one of GPTQ, where it does nothing",
    "megatron_config": "write null for it in adapter_config.json if the layers are plain ones",
}
"""Unsupported settings that change what an adapter computes, each with a way out."""
_WITHOUT_EFFECT = {"eva_config", "corda_config", "lora_ga_config", "loftq_config", "velora_config", "runtime_config"}
"""Settings that look like those of a variant, but matter in training only."""
_READ_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica", "pissa", "olora")
"""Values of init_lora_weights that leave the base unchanged, or change it as the base itself determines (`starts`)."""
_OTHER_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM")
_MERGEABLE = ("ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA", "FOURIERFT", "HRA", "LN_TUNING", "RANDLORA")
_MERGEABLE += ("TRAINABLE_TOKENS",)
"""Other methods of PEFT that have merge_and_unload."""
_MOST = 2**20
"""Largest rank and alpha."""
_MOST_PATTERNS = 2_000
"""Largest number of patterns; a model has fewer modules."""
_KINDS = {
    "r": int,
    "lora_alpha": float,
    "lora_dropout": float | None,
    "rank_pattern": dict[str, int] | None,
    "alpha_pattern": dict[str, float] | None,
    "trainable_token_indices": list[int] | dict[str, list[int]] | None,
}
"""Types of what is read besides what is refused."""


@dataclass(frozen=True)
class Scaling:
    """The rank and scale of each module's update, as PEFT derives them from its settings."""

    r: int
    alpha: float
    ranks: Mapping[str, int]
    """Rank by pattern of a module's name."""
    alphas: Mapping[str, float]
    """Alpha by pattern of a module's name."""
    is_root: bool
    """Whether alpha is divided by the square root of the rank (rsLoRA)."""

    def rank(self, module: str) -> int:
        """Returns the rank of one of their modules."""
        return self.ranks.get(_matching(self.ranks, module), self.r)

    def alpha_of(self, module: str) -> float:
        """Returns the alpha of one of their modules."""
        return self.alphas.get(_matching(self.alphas, module), self.alpha)

    def scale(self, module: str) -> float:
        """Returns the scale of the update of one of their modules."""
        rank = self.rank(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.is_root else rank)


def read_settings(settings: Mapping[str, Any]) -> Scaling:
    """Returns the ranks and scales that adapter_config.json states.

    Args:
        settings: content of adapter_config.json.

    Raises:
        UserError: a setting changes what the adapter computes in an unsupported way; the message names it.
    """
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"the adapter has peft_type={shown(kind)}, and LORA is read; "
            + (MERGE if kind in _MERGEABLE else "nothing here computes it: generate with PEFT")
        )
    if (task := settings.get("task_type")) in _OTHER_TASKS:
        raise UserError(f"the adapter has task_type={task!r}: its model does not go on with a text, as all here do")
    for name, way_out in _REFUSED.items():
        if settings.get(name):
            raise UserError(f"the adapter has {name}={shown(settings[name])}, which nothing here computes; {way_out}")
    unknown = [n for n in settings if n.startswith("use_") or n.endswith("_config")]
    for name in sorted(set(unknown) - {"use_dora", "use_rslora", *_WITHOUT_EFFECT}):
        if settings[name]:
            raise UserError(f"the adapter has {name}={shown(settings[name])}, which is not known here; {MERGE}")
    start = settings.get("init_lora_weights")
    if start not in _READ_STARTS:
        raise UserError(f"the adapter has init_lora_weights={shown(start)}: {_CONVERT}")
    require_types("adapter_config.json", settings, _KINDS, "save it again")
    r, alpha = settings.get("r", 8), settings.get("lora_alpha", 8)
    ranks, alphas = settings.get("rank_pattern") or {}, settings.get("alpha_pattern") or {}
    for name, values, least in (("rank", (r, *ranks.values()), 1), ("alpha", (alpha, *alphas.values()), -_MOST)):
        if impossible := [x for x in values if not least <= x <= _MOST]:
            raise UserError(f"adapter_config.json has the {name} {impossible[0]}, which no layer has; save it again")
    for patterns in (ranks, alphas):
        _require_quick(patterns)
    return Scaling(r, alpha, ranks, alphas=alphas, is_root=bool(settings.get("use_rslora")))


def _require_quick(patterns: Mapping[str, Any]) -> None:
    """Checks that names are compared with patterns in no time.

    A regex with repetitions inside of one another, or with many of them, takes a time that grows exponentially.

    Raises:
        UserError: a pattern is no regex, or may take forever.
    """
    if len(patterns) > _MOST_PATTERNS:
        raise UserError(f"adapter_config.json has {len(patterns):,} patterns, and at most {_MOST_PATTERNS:,} are read")
    for pattern in patterns:
        repeated_groups = re.search(r"\)\s*[*+{]", pattern)
        if len(pattern) > 1_000 or repeated_groups or len(re.findall(r"[*+{]", pattern)) > 4:
            raise UserError(
                f"adapter_config.json has the pattern {shown(pattern)}, which may take forever to compare; list the "
                "names of the layers instead"
            )
        try:
            _compiled(pattern)
        except (re.error, OverflowError, RecursionError) as e:
            raise UserError(f"adapter_config.json has the pattern {shown(pattern)}, which is no regex ({e})") from e


def token_indices(settings: Mapping[str, Any], module: str) -> list[int]:
    """Returns the ids of the tokens whose rows of `module`, one of theirs, were trained."""
    indices = settings.get("trainable_token_indices") or []
    if isinstance(indices, Mapping):
        fitting = [ids for name, ids in indices.items() if f".{module}".endswith(f".{name}")]
        indices = fitting[0] if fitting else []
    return list(indices)


def write_settings(
    config: Config,
    args: LoRAArgs,
    ranks: Mapping[str, int | None],
    parameters: Mapping[str, int | None],
    is_folded: bool,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the content of adapter_config.json for a run.

    Args:
        ranks: rank of each of their linear modules; None for a module without an update.
        parameters: the same for the parameters that PEFT adapts in place of modules: experts and their routers.
        is_folded: whether the scale is multiplied into the weights already.
        more: settings besides those of the updates.
    """
    is_root = args.lora_scaling == "rslora" and not is_folded
    counted = Counter(rank for rank in (*ranks.values(), *parameters.values()) if rank)
    r = counted.most_common(1)[0][0] if counted else args.lora_r

    def alpha(rank: int) -> float:
        scale = 1 if is_folded else args.scaling
        is_given = rank == args.lora_r and not is_folded
        exact = args.lora_alpha if is_given else scale * (rank**0.5 if is_root else rank)
        return int(exact) if exact == int(exact) else exact

    named = {name: rank for name, rank in _shortened(ranks).items() if rank}
    stacks = {name: rank for name, rank in _shortened(parameters, 3).items() if rank}
    others = {name: rank for name, rank in (*named.items(), *stacks.items()) if rank != r}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.hf_repo or None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha(r),
        "lora_dropout": 0.0 if stacks else args.lora_dropout,  # PEFT has none for parameters
        "target_modules": sorted(named),
        **({"target_parameters": sorted(stacks)} if stacks else {}),
        "rank_pattern": others,
        "alpha_pattern": {name: alpha(rank) for name, rank in others.items()},
        "use_rslora": is_root,
        "use_dora": args.lora_dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        **more,
    }


def _shortened(ranks: Mapping[str, int | None], n: int = 1) -> dict[str, int | None]:
    """Returns the ranks by the last n parts of a name if all names with them agree, else by the full name."""
    last = {name: ".".join(name.split(".")[-n:]) for name in ranks}
    alike = {name for name in last.values() if len({ranks[m] for m in ranks if last[m] == name}) == 1}
    return {last[module] if last[module] in alike else module: rank for module, rank in ranks.items()}


def _matching(patterns: Mapping[str, Any], module: str) -> str:
    """Returns the first pattern, a regex for the end of a name, that matches a module (PEFT: `get_pattern_key`)."""
    return next((pattern for pattern in patterns if _compiled(pattern).fullmatch(module)), module)


@lru_cache(maxsize=2 * _MOST_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    """Returns the regex of names that end as the pattern says."""
    return re.compile(rf"(.*\.)?({pattern})")
