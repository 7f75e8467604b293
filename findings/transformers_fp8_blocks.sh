#!/usr/bin/env bash
# transformers 5.23, a checkpoint in FP8 by blocks (quant_method fp8) on a machine without a GPU, where it is dequantized.
#
# One would guess that the blocks are those that `weight_block_size` in config.json states.
# What happens: the size is not looked at. Blocks are rows / rows of scales: of 192 rows and 2 rows of scales (128 and 64
# rows) both get 96, so that every third row has the scale of another block, without a word. 320 rows are no multiple of
# 3 and fail. Where 128 divides both sizes, as in all published models, nothing shows.
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
from safetensors.torch import save_file


def loaded(n_rows):
    """The largest error of transformers for an MLP of n_rows rows, with scales that differ a lot from block to block."""
    config = transformers.LlamaConfig(hidden_size=128, intermediate_size=n_rows, num_hidden_layers=1,
                                      num_attention_heads=2, vocab_size=32)  # fmt: skip
    state, want = {}, {}
    for name, w in transformers.LlamaForCausalLM(config).bfloat16().state_dict().items():
        state[name] = want[name] = w.clone()
        if "proj" in name:
            scale = torch.rand(-(-w.size(0) // 128), -(-w.size(1) // 128)) + 0.1
            state[name] = w.float().to(torch.float8_e4m3fn)
            state[f"{name}_scale_inv"] = scale
            each = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: w.size(0), : w.size(1)]
            want[name] = (state[name].float() * each).bfloat16()
    folder = Path(str(n_rows))
    config.save_pretrained(folder)
    stated = json.loads((folder / "config.json").read_text())
    stated["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(stated))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    try:
        found = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu")
    except Exception as e:
        return type(e).__name__
    got = found.state_dict()
    name = "model.layers.0.mlp.gate_proj.weight"
    return float((got[name].float() - want[name].float()).abs().max() / want[name].float().abs().max())


torch.manual_seed(0)
errors = {n: loaded(n) for n in (256, 192, 320)}
for n, error in errors.items():
    print(f"transformers {transformers.__version__}: {n} rows: {error} of the largest weight")
if errors[256] != 0 or errors[192] == 0:
    raise SystemExit("this is mended, or something else is wrong")
PY
