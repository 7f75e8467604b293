#!/usr/bin/env bash
# A LoRA adapter of GPT-NeoX's head (Pythia), saved by peft with transformers 5.13 and loaded by the same peft with 5.14.
#
# One would guess: the adapter works. The weights' files name the head embed_out in both, and within transformers 5 a
# checkpoint of the one loads in the other.
#
# What happens: transformers 5.14 calls the module lm_head, and maps only the names of weights' files. Names in adapters
# are those of modules. If the head is all that was adapted, peft finds no target and raises an error. If attention was
# adapted, too, the adapter loads, and the head's update is left out: logits are those of a model without it, and a
# warning is all there is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet peft==0.21.0 transformers==5.13.1
cd "$work"
export HF_HUB_OFFLINE=1
"$work/venv/bin/python" - <<'PYTHON'
import peft
import torch
import transformers

print("transformers", transformers.__version__, "peft", peft.__version__)
torch.manual_seed(0)
config = transformers.GPTNeoXConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
)
model = transformers.GPTNeoXForCausalLM(config)
model.save_pretrained("base")
for name, targets in {"head": ["embed_out"], "both": ["query_key_value", "embed_out"]}.items():
    base = transformers.AutoModelForCausalLM.from_pretrained("base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()
    adapted.save_pretrained(name)
    torch.save(adapted(torch.arange(8)[None]).logits, f"{name}.pt")
PYTHON
"$work/venv/bin/pip" install --quiet transformers==5.14.1
"$work/venv/bin/python" - <<'PYTHON'
import warnings

import peft
import torch
import transformers
from safetensors import safe_open

print("transformers", transformers.__version__, "peft", peft.__version__)
with safe_open("base/model.safetensors", "pt") as file:
    print("the head in the weights' file:", [name for name in file.keys() if "embed_out" in name or "lm_head" in name])
base = transformers.AutoModelForCausalLM.from_pretrained("base")
print("the head's module:", [name for name, _ in base.named_modules() if name in ("embed_out", "lm_head")])
refused = ""
try:
    peft.PeftModel.from_pretrained(base, "head")
except ValueError as e:
    refused = str(e)
print("the head alone:", refused[:120] or "loads")
base = transformers.AutoModelForCausalLM.from_pretrained("base")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loaded = peft.PeftModel.from_pretrained(base, "both").eval()
logits, before = loaded(torch.arange(8)[None]).logits, torch.load("both.pt")
print("attention and the head: largest difference of the logits", round((logits - before).abs().max().item(), 3))
print("warnings:", [str(w.message)[:120] for w in caught])
adapted = {name.split(".")[-2] for name, _ in loaded.named_modules() if name.endswith("lora_A")}
print("modules with an adapter:", adapted)
assert refused and adapted == {"query_key_value"}, "the behaviour has changed"
assert not torch.allclose(logits, before, atol=1e-3), "the behaviour has changed"
PYTHON
