#!/usr/bin/env bash
# One would guess that an adapter which PEFT saved computes, loaded onto the same base, what it did when it was saved.
#
# With init_lora_weights="pissa" it does: PEFT takes the principal part off the base again when it loads the adapter, and
# the exact SVD finds the same part. With "pissa_niter_4", the fast start of PEFT's guide, the search begins at random:
# each load takes something else off, and nothing says so. Only the converted form
# (save_pretrained(path_initial_model_for_weight_conversion=...)) survives.
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
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.filterwarnings("ignore")
print("peft", peft.__version__)
ids = torch.arange(16).unsqueeze(0)


def base():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=320, initializer_range=0.3, **sizes)).eval()


@torch.no_grad()
def distances(start):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": start}
    model = get_peft_model(base(), LoraConfig(**settings)).eval()
    model.save_pretrained("start")
    for name, p in model.named_parameters():
        if "lora_" in name:
            p += 0.05 * torch.randn_like(p)
    want = model(ids).logits
    model.save_pretrained("plain")
    model.save_pretrained("converted", path_initial_model_for_weight_conversion="start")
    found = {}
    for form in ("plain", "converted"):
        again = base()
        torch.manual_seed(1)  # as another process has another state of the generator
        got = PeftModel.from_pretrained(again, form).eval()(ids).logits
        found[form] = float((got - want).abs().max() / want.abs().max())
    print(f"{start:14} largest difference of a logit after loading, over the largest logit: {found}")
    return found


exact, fast = distances("pissa"), distances("pissa_niter_4")
as_found = max(*exact.values(), fast["converted"]) < 1e-4 and fast["plain"] > 1e-2
sys.exit(0 if as_found else "the behaviour has changed")
PY
