#!/usr/bin/env bash
# Which linear layers stay in 16 bits by BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=[...]).
#
# One would guess that the list is added to what stays anyway (without one, the head does), and that "mlp" or "layers.0"
# names what has it in its name.
# What happens: a list takes the place of that: with ["up_proj"] the head is quantized to 4 bits. An entry counts if it is
# the end of a module's name, or the beginning as a whole: "mlp" and "layers.0" match nothing, "model.layers.0" all of a
# layer. So ["mlp"] keeps no MLP and quantizes the head as well, without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q transformers==5.23.0 accelerate==1.15.0 bitsandbytes==0.50.2
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>log <<'PYTHON' || { tail -20 log; exit 1; }
import bitsandbytes
import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
LlamaForCausalLM(LlamaConfig(vocab_size=320, **sizes)).save_pretrained("model")
print("transformers", transformers.__version__, "bitsandbytes", bitsandbytes.__version__)
found = {}
for entry in (None, "up_proj", "mlp", "layers.0", "model.layers.0"):
    settings = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=entry and [entry])
    model = AutoModelForCausalLM.from_pretrained("model", quantization_config=settings, device_map="cpu")
    found[entry] = sorted(name for name, m in model.named_modules() if type(m) is torch.nn.Linear)
    print(f"{entry and [entry]}: not quantized: {', '.join(found[entry]) or 'nothing'}")
assert found[None] == ["lm_head"] and found["mlp"] == found["layers.0"] == [], "the behaviour has changed"
assert found["up_proj"] == [f"model.layers.{i}.mlp.up_proj" for i in range(2)], "the behaviour has changed"
assert len(found["model.layers.0"]) == 7 and "lm_head" not in found["model.layers.0"], "the behaviour has changed"
PYTHON
