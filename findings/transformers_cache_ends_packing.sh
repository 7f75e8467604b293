#!/usr/bin/env bash
# Two texts packed into one row of a Llama of transformers, with position_ids that begin again at 0 for the second.
#
# One would guess that use_cache, which is about generating, changes no logit of a single pass, and that an attention_mask
# of ones says what no mask says.
# What happens: transformers tells texts apart by their positions, but only without a mask and without a cache, and
# use_cache is True unless told otherwise, in training mode, too. So `model(ids, position_ids=...)` lets the second text
# see the first, without a word; with use_cache=False it does not; with a mask of ones beside that, it does again.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet transformers==5.23.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=320, initializer_range=0.3, **sizes))
ids, positions = torch.arange(16)[None], torch.arange(8).repeat(2)[None]
ones = torch.ones_like(ids)
found = {}
with torch.no_grad():
    want = model.eval()(ids[:, 8:]).logits
    for mode in ("train", "eval"):
        model.train(mode == "train")
        for given in ({}, {"use_cache": False}, {"use_cache": False, "attention_mask": ones}):
            got = model(ids, position_ids=positions, **given).logits[:, 8:]
            difference = float((got - want).abs().max() / want.abs().max())
            found[mode, *given] = difference
            print(
                f"transformers {transformers.__version__}, {mode}, given {', '.join(given) or 'neither'}: "
                f"the second text is {difference:.1e} off what it is alone"
            )
for mode in ("train", "eval"):
    assert found[mode, "use_cache"] < 1e-4, "the behaviour has changed"
    assert found[mode,] > 0.1 and found[mode, "use_cache", "attention_mask"] > 0.1, "the behaviour has changed"
PYTHON
