#!/usr/bin/env bash
# One would guess that fast kernels are taken on the devices that they are for: a model on a CPU computes in plain torch,
# whatever is installed, as transformers says of a package that is missing.
#
# transformers 5.23 decides when the model's module is imported, by whether the package can be imported, and asks no device
# afterwards. With fla-core installed, Qwen3.5 on a CPU goes into Triton, and ends in its error that there is no driver; in
# the same environment without it, it computes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q transformers==5.23.0
cat > "$folder/forward.py" <<'PY'
import sys
from importlib.util import find_spec

import torch
import transformers
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "head_dim": 16}
sizes |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
config = Qwen3_5TextConfig(num_key_value_heads=1, layer_types=["linear_attention", "full_attention"],
                           num_hidden_layers=2, **sizes)
model = Qwen3_5ForCausalLM(config).eval()
try:
    with torch.no_grad():
        shape = tuple(model(torch.arange(1, 21)[None]).logits.shape)
    found = f"logits {shape}"
except RuntimeError as e:
    found = f"RuntimeError: {e}"
print(f"transformers {transformers.__version__}, fla-core {'there' if find_spec('fla') else 'not there'}, on a CPU: {found}")
sys.exit(0 if found.startswith(sys.argv[1]) else "the behaviour has changed")
PY
cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" -W ignore forward.py "logits (1, 20, 64)"
"$folder/venv/bin/pip" install -q fla-core==0.6.0 triton==3.9.0
"$folder/venv/bin/python" -W ignore forward.py "RuntimeError: 0 active drivers"
