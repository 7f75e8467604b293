#!/usr/bin/env bash
# One would guess that merge_and_unload gives a model that computes what the adapted one does: that is what it is for.
#
# With layer_replication, which repeats layers of the base with shared weights and an adapter each, every update of a
# repeated layer is added to the one shared weight: all its copies get the sum of the updates. Nothing warns. unload(),
# and each layer with weights of its own before merging, gives the right model.
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
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.filterwarnings("ignore")
print("peft", peft.__version__)
ids = torch.arange(16).unsqueeze(0)
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


@torch.no_grad()
def distance(**settings):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=320, initializer_range=0.3, **sizes)).eval()
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **settings)).eval()
    for name, p in model.named_parameters():
        if "lora_" in name:
            p += 0.1 * torch.randn_like(p)
    want = model(ids).logits
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got = model.merge_and_unload()(ids).logits
    found = float((got - want).abs().max() / want.abs().max())
    print(f"{settings}: largest difference of a logit, over the largest: {found:.1e}; warnings: {len(said)}")
    return found, len(said)


plain, _ = distance()
repeated, n_warnings = distance(layer_replication=[[0, 2], [1, 2]])
sys.exit(0 if plain < 1e-4 and repeated > 1e-2 and not n_warnings else "the behaviour has changed")
PY
