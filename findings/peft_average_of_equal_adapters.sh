#!/usr/bin/env bash
# The average of two LoRA adapters by add_weighted_adapter(..., weights=[0.5, 0.5], combination_type="linear").
#
# One would guess that it is the average of the two updates, so that the average of an adapter with itself is that adapter.
# What happens: weights are applied to the factors A and B each, by their square roots, and sums of factors are
# multiplied. An adapter averaged with itself gets twice its update. Averaged with one whose A and B both have the other sign,
# which is the same update, it gets none at all. "cat" and "svd" give the average of the updates.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q transformers==5.23.0 peft==0.21.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>/dev/null <<'PY'
import sys

import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
settings = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
model = get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=320, **sizes)), settings, adapter_name="one")
for name in ("same", "negated"):
    model.add_adapter(name, settings)
parameters = dict(model.named_parameters())
for name, p in parameters.items():
    if ".one." in name:
        parameters[name.replace(".one.", ".same.")].data.copy_(p.data)
        parameters[name.replace(".one.", ".negated.")].data.copy_(-p.data)
layer = model.base_model.model.model.layers[0].self_attn.q_proj
want = layer.get_delta_weight("one")
assert torch.equal(want, layer.get_delta_weight("same")) and torch.equal(want, layer.get_delta_weight("negated"))
print("peft", peft.__version__)
found = {}
for other in ("same", "negated"):
    for how in ("linear", "cat", "svd"):
        model.add_weighted_adapter(["one", other], [0.5, 0.5], f"{other}-{how}", combination_type=how)
        got = layer.get_delta_weight(f"{other}-{how}")
        found[other, how] = round(float((got * want).sum() / (want * want).sum()), 3)
        print(f"average with an equal update (factors {other}), {how}: {found[other, how]} of the update")
expected = {("same", "linear"): 2.0, ("negated", "linear"): 0.0}
as_found = all(found[key] == expected.get(key, 1.0) for key in found)
sys.exit(0 if as_found else "the behaviour has changed")
PY
