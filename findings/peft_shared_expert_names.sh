#!/usr/bin/env bash
# One would guess that target_modules=["gate_proj"] adapts the modules of that name.
#
# In a mixture with a shared expert (Qwen 3 Next, GLM 4.5) it adapts none of them: PEFT takes the name for that which
# experts have in files, adapts the stacked parameter of all experts instead, and leaves out the shared expert and the
# layers without experts. An adapter whose weights name them loads with a warning about keys, and computes something else.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q transformers==5.23.0 peft==0.21.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import sys
import warnings

import peft
from peft import LoraConfig, get_peft_model
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

warnings.filterwarnings("ignore")
print("peft", peft.__version__)
sizes = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2}
sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2}
model = Glm4MoeForCausalLM(Glm4MoeConfig(vocab_size=64, **sizes))
there = sorted(name for name, _ in model.named_modules() if name.endswith(("gate_proj", "up_proj")))
adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["gate_proj", "up_proj"]))
found = sorted({name.split(".lora_")[0] for name, _ in adapted.named_parameters() if ".lora_A." in name})
print("modules of the name:", ", ".join(there))
print("adapted:            ", ", ".join(found))
as_found = len(there) == 4 and found == ["base_model.model.model.layers.1.mlp.experts"]
sys.exit(0 if as_found else "the behaviour has changed")
PY
