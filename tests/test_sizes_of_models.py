"""The sizes of listed models give as many parameters as their names state, or as is known of those that round.

No published config.json was at hand for the families that came last: their sizes are remembered, and this holds a
width, a number of layers or of experts to the whole. A conversion takes all sizes from the checkpoint's config.json.
"""

import re
from dataclasses import replace

import torch

from lit_gpt.families import MODELS, config_for
from lit_gpt.model import GPT

BILLIONS = {  # of models whose names round much, or state only what a token goes through, or nothing
    "Falcon3-1B-Base": 1.67, "Gemma-2b": 2.51, "Gemma-7b": 8.54, "gemma-2-2b": 2.61, "granite-3.3-2b-base": 2.53,
    "granite-4.0-h-1b": 1.46, "Llama-3.2-1B": 1.24, "Llama-4-Scout-17B-16E": 107.8, "OLMo-2-0425-1B": 1.48,
    "Llama-4-Maverick-17B-128E": 400.7, "Ministral-3-3B-Base-2512": 3.43, "open_llama_3b": 3.43, "GLM-4.5-Air": 106.9,
    "stablelm-base-alpha-3b": 3.64, "stablelm-base-alpha-7b": 7.87, "GLM-4.5": 352.8,
    "gemma-4-E2B": 4.63, "gemma-4-E4B": 7.46, "gemma-4-31B": 30.7, "gemma-4-26B-A4B": 25.23,
}  # fmt: skip
STATED = re.compile(r"(?<![\d.A-Za-z])(\d+(?:[._]\d+)?)([bm])(?![a-z])", re.IGNORECASE)


def parameters_of(config) -> int:
    """The number of parameters, from one layer of each kind."""
    if config.full_head_size:  # layers differ in more than their kind; those of a mixture come again after six
        n = 6 if config.n_expert else config.n_layer
        with torch.device("meta"):
            model = GPT(replace(config, n_layer=n))
        blocks = sum(p.numel() for p in model.transformer.h.parameters())
        return sum(p.numel() for p in model.parameters()) + blocks * (config.n_layer - n) // n
    total, rest, alone = 0, 0, {}
    for i in range(config.n_layer):
        mlp = config.mlp_of(i)[0]
        is_dense = mlp not in (config.mlp, "none")
        kind = config.mixer(i), mlp
        if kind not in alone:
            mixers = None if config.mixers is None else [config.mixer(i)]
            others = {"sliding_layers": None, "unrotated_layers": None, "dense_layers": [0] if is_dense else None}
            others["mlp_layers"] = [] if mlp == "none" else None
            with torch.device("meta"):
                model = GPT(replace(config, n_layer=1, mixers=mixers, **others))
            alone[kind] = sum(p.numel() for p in model.transformer.h.parameters())
            rest = sum(p.numel() for p in model.parameters()) - alone[kind]
        total += alone[kind]
    return total + rest


def test_the_sizes_of_a_model_give_the_parameters_that_its_name_states():
    seen, off = set(), {}
    for name in MODELS:
        config = config_for(name)
        sizes = config.architecture, config.n_layer, config.n_embd, config.intermediate_size, config.n_expert
        stated = STATED.search(name)
        if sizes in seen or not (stated or name in BILLIONS):
            continue
        seen.add(sizes)
        wanted, near = BILLIONS.get(name), 0.01
        if wanted is None:
            wanted, near = float(stated[1].replace("_", ".")) * (1 if stated[2] in "bB" else 1e-3), 0.12
        if abs((found := parameters_of(config) / 1e9) / wanted - 1) > near:
            off[name] = f"{found:.3f}, not {wanted}"
    assert len(seen) > 80 and not off, off
