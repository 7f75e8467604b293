#!/usr/bin/env bash
# One would guess that the first two layers of a model make a smaller model, as people cut one for a test.
#
# In transformers' Qwen3-Next and Qwen3.5 every fourth layer is attention, so that the first two or three have the delta
# rule alone. The configuration takes that and the model is made, but its forward pass, also the one with labels, raises
# a ValueError: it makes a cache by default and asks that for its length, which only attention keeps. With use_cache=False
# the same model computes its loss; with four layers nothing of this is seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q transformers==5.23.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, Qwen3_5TextConfig, Qwen3NextConfig

print("transformers", transformers.__version__)
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
sizes |= {"vocab_size": 128, "linear_num_value_heads": 4, "linear_num_key_heads": 2}
sizes |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
ids, found = torch.arange(1, 9)[None], []
for kind, more in ((Qwen3NextConfig, experts), (Qwen3_5TextConfig, {})):
    for n_layers in (2, 4):
        model = AutoModelForCausalLM.from_config(kind(num_hidden_layers=n_layers, **sizes, **more))
        for settings in ({}, {"use_cache": False}):
            try:
                said = f"loss {model(ids, labels=ids, **settings).loss.item():.2f}"
            except ValueError as e:
                said = f"ValueError: {e}"
            print(f"{model.config.model_type}, {n_layers} layers, {settings or 'by default'}: {said}")
            found.append(said.startswith("loss"))
sys.exit(0 if found == [False, True, True, True] * 2 else "the behaviour has changed")
PY
