#!/usr/bin/env bash
# One would guess that PEFT refuses an adapter none of whose weights has a place in the model, or that one made with the
# text model of Gemma 3 works on the same weights inside of the multimodal model.
#
# There the text model's layers are called model.language_model.layers, and not model.layers. PEFT warns of missing
# keys, returns the model, and its logits are those of the base: the adapter has no effect. It has also put LoRA layers
# of its own into the vision tower, whose layers have the same last names.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q transformers==5.23.0 peft==0.21.0 pillow
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import sys
import warnings

import peft
import torch
import transformers
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

print("transformers", transformers.__version__, "peft", peft.__version__)
torch.manual_seed(0)
text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
vision |= {"image_size": 16, "patch_size": 8}
settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
of_text = peft.get_peft_model(Gemma3ForCausalLM(Gemma3TextConfig(**text)), settings)
for name, p in of_text.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(p)
of_text.save_pretrained("adapter")

whole = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)).eval()
for p in whole.parameters():
    torch.nn.init.normal_(p, std=0.2)
ids = torch.arange(1, 10)[None]
with torch.no_grad():
    before = whole(ids).logits.clone()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(whole, "adapter").eval()
    after = adapted(ids).logits
warned = any("missing adapter keys" in str(w.message) for w in said)
in_vision = sum("vision_tower" in name and "lora_A" in name for name, _ in adapted.named_parameters())
changed = float((after - before).abs().max())
print(f"warned of missing keys: {warned}; logits changed by {changed}; LoRA layers in the vision tower: {in_vision}")
sys.exit(0 if warned and changed == 0 and in_vision else "the behaviour has changed")
PY
