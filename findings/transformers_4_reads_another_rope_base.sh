#!/usr/bin/env bash
# A Llama with rope_theta 500000 (as Llama 3), saved by transformers 5.23 and loaded by transformers 4.57.
#
# One would guess that it computes the same, or does not load: the weights have the same names and the format is that of
# the same library, one version apart.
# What happens: transformers 5 writes the base within rope_parameters, and no longer as rope_theta. The last versions of
# transformers 4 do not look there, and take 10000. The model loads without a warning, and every position but the first is
# turned by other angles. Tools that read config.json by themselves and were written for the key of old do the same.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet transformers==5.23.0
cd "$work"
export HF_HUB_OFFLINE=1
"$work/venv/bin/python" - <<'PYTHON'
import json
from pathlib import Path

import torch
import transformers

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
rope = {"rope_type": "default", "rope_theta": 500000.0}
config = transformers.LlamaConfig(vocab_size=320, initializer_range=0.3, rope_parameters=rope, **sizes)
model = transformers.LlamaForCausalLM(config).eval()
model.save_pretrained("model")
torch.save(model(torch.arange(16)[None]).logits.detach(), "logits.pt")
stated = {k: v for k, v in json.loads(Path("model/config.json").read_text()).items() if "rope" in k}
print("transformers", transformers.__version__, "writes", stated)
PYTHON
"$work/venv/bin/pip" install --quiet transformers==4.57.6
"$work/venv/bin/python" - 2> log <<'PYTHON'
import torch
import transformers

model = transformers.AutoModelForCausalLM.from_pretrained("model").eval()
want, got = torch.load("logits.pt"), model(torch.arange(16)[None]).logits.detach()
off = [float((g - w).abs().max() / want.abs().max()) for g, w in zip(got[0], want[0])]
print(f"transformers {transformers.__version__} takes rope_theta {model.config.rope_theta}; logits are off by {off[0]:.1e} of the")
print(f"largest at the first position, and by up to {max(off):.1e} at the others")
assert model.config.rope_theta == 10000.0 and off[0] < 1e-4 and max(off) > 1e-2, "the behaviour has changed"
PYTHON
echo "warnings: $(grep -c -i warn log || true)"
