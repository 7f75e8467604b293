#!/usr/bin/env bash
# transformers 5.23, a model in FP8 loaded on a machine without a GPU, which dequantizes it, and saved again.
#
# One would guess that `save_pretrained` writes the 16-bit weights that the model has, or the FP8 weights that it had.
# What happens: weights are FP8 again, embeddings and head too, which never were, and config.json has no
# quantization_config. Loaded from that folder, the codes pass for weights: no error, and other logits. So a folder of FP8
# weights of which config.json says nothing cannot be taken for what its tensors' dtype suggests.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>/dev/null <<'PY'
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

torch.manual_seed(0)
config = transformers.LlamaConfig(hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
                                  vocab_size=128)  # fmt: skip
state = transformers.LlamaForCausalLM(config).bfloat16().state_dict()
for name, w in list(state.items()):
    state[name] = w.clone()
    if "proj" in name:
        scale = w.float().abs().max() / 448
        state[name] = (w.float() / scale).to(torch.float8_e4m3fn)
        state[f"{name}_scale_inv"] = scale.view(1, 1)
config.save_pretrained("fp8")
stated = json.loads(Path("fp8/config.json").read_text())
stated["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
Path("fp8/config.json").write_text(json.dumps(stated))
save_file(state, "fp8/model.safetensors", {"format": "pt"})


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu").eval()


ids = torch.arange(16)[None]
first = load("fp8")
first.save_pretrained("again")
kinds = {str(x.dtype) for n, x in load_file("again/model.safetensors").items() if "norm" not in n}
says = "quantization_config" in json.loads(Path("again/config.json").read_text())
with torch.no_grad():
    before, after = first(ids).logits.float(), load("again")(ids).logits.float()
difference = float((after - before).abs().max())
print(f"transformers {transformers.__version__}: saved as {sorted(kinds)}, quantization_config: {says}; "
      f"logits up to {float(before.abs().max()):.3g} differ by {difference:.3g}")  # fmt: skip
if says or "torch.float8_e4m3fn" not in kinds or difference == 0:
    raise SystemExit("this is mended")
PY
