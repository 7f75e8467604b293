#!/usr/bin/env bash
# One would guess that a model generates with its cache what it computes without.
#
# Nemotron-H of transformers raises time steps below time_step_min in passes over several tokens, and not in those over
# one: with trained steps that small, logits with the cache are others, and so is what is generated. The key
# time_step_limit, which files state as [0, Infinity], is not read.
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
from transformers import NemotronHConfig, NemotronHForCausalLM

print("transformers", transformers.__version__)
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2}
sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "ssm_state_size": 16}
config = NemotronHConfig(vocab_size=64, layers_block_type=["linear_attention", "full_attention"], **sizes)
model = NemotronHForCausalLM(config).eval()
for p in model.parameters():
    torch.nn.init.normal_(p, std=0.3)
ids, off = torch.arange(1, 21)[None], []
for bias in (-3.0, -9.0):  # time steps of about 0.05, and of 0.0001
    with torch.no_grad():
        model.model.layers[0].mixer.dt_bias.fill_(bias)
        model.model.layers[0].mixer.in_proj.weight[-8:] = 0
        model.model.layers[0].mixer.D.fill_(0.01)
        whole, cache, pieces = model(ids).logits, None, []
        for i in range(20):
            out = model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            pieces.append(out.logits)
    off.append(float((torch.cat(pieces, 1) - whole).norm() / whole.norm()))
    print(f"dt_bias {bias}: logits with the cache are {off[-1]:.1e} off those of one pass")
sys.exit(0 if off[0] < 1e-5 and off[1] > 1e-3 else "the behaviour has changed")
PY
