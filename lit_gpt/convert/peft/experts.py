"""Updates of experts, which a loaded model of transformers stacks in one parameter, as PEFT's `target_parameters`.

PEFT wraps the module with such parameters, once for each of them: the weights of the first are under `base_layer`. A is
(E r, inputs) and stacks the experts' own; B is (outputs, r E), and expert e has every E-th column from column e on. In
this folder an expert's matrix is a module of its own: `....experts.down_proj.3`.

Letters: E experts, r rank.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping

from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.convert.names import hf_sources
from lit_gpt.errors import UserError
from lit_gpt.families import ARCHITECTURES
from lit_gpt.families.family import Part, Rule, Stacked

_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+?)(?P<nested>(?:\.base_layer)*)\.lora_(?P<kind>[AB])\.weight")
_EXPERT = re.compile(r"(?P<module>.+\.experts)\.(?P<parameter>\w+)\.(?P<number>\d+)")


def sources_in_memory(name: str, config: Config) -> tuple[Rule, list[str]]:
    """Returns what `hf_sources` does for a loaded model, with the modules of this folder for experts."""
    rule, sources = hf_sources(name, config, in_memory=True)
    if not isinstance(rule, Stacked):
        return rule, sources
    leaf = name.rpartition(".")[2]
    module = f"{sources[0].removesuffix('_bias')}.{rule.expert}"
    if rule.rows == "all":
        return module, [f"{module}.{leaf}"]
    index = int(rule.rows in ("second half", "odd"))
    return Part(module, index, alternating=rule.rows in ("even", "odd")), [f"{module}.{leaf}"]


def parameter_of(module: str, ours: list[str]) -> str | None:
    """Returns the parameter that PEFT adapts in place of a module of this folder; None if it adapts the module.

    Args:
        ours: our modules that it holds.
    """
    if match := _EXPERT.fullmatch(module):
        return f"{match['module']}.{match['parameter']}"
    is_router = any(name.endswith(".mlp.gate") for name in ours)  # in transformers no linear layer
    return f"{module}.weight" if is_router else None


def require_adaptable(modules: Collection[str], config: Config) -> None:
    """Checks that PEFT adapts all modules of a run, and does not take those beside the experts for theirs.

    Where a loaded model has gates and ups in one stack, it turns the names that experts have in files (`gate_proj`)
    into those of the stacks, wherever the module lies.

    Raises:
        UserError: a module has such a name, or one that PEFT adapts in no model of this class.
    """
    architecture = ARCHITECTURES[config.architecture]
    if refused := [m for m in modules if m.rpartition(".")[2] in architecture.not_in_peft]:
        raise UserError(
            f"PEFT adapts no {architecture.not_in_peft[0]} of {architecture.hf_class}, and the run has an update of "
            f"{refused[0]}; merge the run with scripts/merge_lora.py, or train without --lora_projection"
        )
    if all(not isinstance(rule, Stacked) or rule.n_parts == 1 for rule in architecture.in_memory.values()):
        return
    weights = architecture.weights
    taken = {rule.rpartition(".")[2] for ours, rule in weights.items() if ".experts." in ours and isinstance(rule, str)}
    if beside := [m for m in modules if m.rpartition(".")[2] in taken and not _EXPERT.fullmatch(m)]:
        raise UserError(
            f"PEFT would take the update of {beside[0]} for one of the experts, whose modules have that name in "
            "files; merge the run with scripts/merge_lora.py"
        )


def unstacked(
    config: Config, state: Mapping[str, Tensor], modules: Iterable[str], shape_of: Callable[[str], list[int]]
) -> dict[str, Tensor]:
    """Returns an adapter's weights, in which those of stacked experts are cut into each expert's own.

    Args:
        modules: names of their modules.
        shape_of: returns the shape of one of their parameters.

    Raises:
        UserError: an update of experts fits no parameter of the model.
    """
    stacks: dict[str, list[str]] = {}  # their module -> its parameters that stack experts
    for module in modules:
        if (match := _EXPERT.fullmatch(module)) and match["number"] == "0":
            stacks.setdefault(match["module"], []).append(match["parameter"])
    found, waiting = {}, {}
    for key, x in state.items():
        match = _KEY.fullmatch(key)
        if match and match["module"] in stacks:
            waiting.setdefault((match["module"], match["nested"]), {})[match["kind"]] = x
        else:
            found[key] = x
    E, swaps = config.n_expert, ARCHITECTURES[config.architecture].swaps_factors
    for (module, _), weights in waiting.items():
        A, B = weights.get("A"), weights.get("B")
        if A is None or B is None or A.dim() != 2 or B.dim() != 2 or len(A) % E or B.size(1) != len(A):
            raise UserError(f"the adapter's update of {module} is not whole; save it again")
        shape = [A.size(1), B.size(0)] if swaps else [B.size(0), A.size(1)]
        fitting = [p for p in stacks[module] if shape_of(f"{module}.{p}.0.weight") == shape]
        if not fitting:
            raise UserError(f"the adapter's update of {module} is of matrices of {shape}; {config.name} has none")
        for i, (a, b) in enumerate(zip(A.unflatten(0, (E, -1)), B.unflatten(1, (-1, E)).unbind(2), strict=True)):
            a, b = (b.T, a.T) if swaps else (a, b)
            name = f"{module}.{fitting[0]}.{i}"
            found |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    return found


def stacked(updates: Mapping[str, Mapping[str, Tensor]], config: Config) -> dict[str, Tensor]:
    """Returns the updates of experts by PEFT's keys, from those of each; an expert without one gets zeros.

    Raises:
        UserError: they have magnitudes, which PEFT has not for parameters.
    """
    parts: dict[str, dict[str, dict[int, Mapping[str, Tensor]]]] = {}
    for name, weights in updates.items():
        if (match := _EXPERT.fullmatch(name)) is None:
            continue
        if "magnitude_vector" in weights:
            raise UserError(f"PEFT has no DoRA for experts, and the run has magnitudes of {name}; merge the run")
        if ARCHITECTURES[config.architecture].swaps_factors:
            weights = {"A": weights["B"].T, "B": weights["A"].T}
        of_module = parts.setdefault(match["module"], {})
        of_module.setdefault(match["parameter"], {})[int(match["number"])] = weights
    state = {}
    for module, of_module in parts.items():
        for i, (_, experts) in enumerate(sorted(of_module.items(), reverse=True)):  # gate_up_proj is wrapped first
            like = next(iter(experts.values()))
            r = max(len(weights["A"]) for weights in experts.values())
            A = like["A"].new_zeros(config.n_expert, r, like["A"].size(1))
            B = like["B"].new_zeros(len(like["B"]), r, config.n_expert)
            for number, weights in experts.items():
                A[number, : len(weights["A"])] = weights["A"]
                B[:, : weights["B"].size(1), number] = weights["B"]
            key = f"base_model.model.{module}{'.base_layer' * (len(of_module) - 1 - i)}.lora_"
            state |= {f"{key}A.weight": A.flatten(0, 1), f"{key}B.weight": B.flatten(1)}
    return state
