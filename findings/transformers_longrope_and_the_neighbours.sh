#!/usr/bin/env bash
# A text of 16 tokens, alone and in a batch with a longer one, in a Phi 3 with two sets of RoPE factors (longrope): one for
# up to 32 tokens and one for more.
#
# One would guess that rows of a batch, padded on the right and masked, have the logits that they have alone, but for
# rounding.
# What happens: one set is chosen for the whole batch, by its longest row. Beside a row of 64 tokens, the short text is
# computed with the factors for long ones, and its logits are others. So a score depends on how texts are put into batches,
# and one with batch_size=1 differs from one with 8.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet transformers==5.23.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch
import transformers
from transformers import Phi3Config, Phi3ForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32}
rope |= {"short_factor": [1.0] * 8, "long_factor": [1.0, 1.1, 1.3, 1.7, 2.5, 4.0, 8.0, 16.0]}
sizes |= {"max_position_embeddings": 128, "original_max_position_embeddings": 32, "pad_token_id": 0, "eos_token_id": 1}
model = Phi3ForCausalLM(Phi3Config(vocab_size=320, initializer_range=0.3, rope_parameters=rope, **sizes)).eval()
text = torch.arange(2, 18)
off = {}
with torch.no_grad():
    alone = model(text[None]).logits[0]
    for n in (24, 64):
        ids = torch.zeros(2, n, dtype=torch.long)
        ids[0, :16], ids[1] = text, torch.arange(2, 2 + n)
        got = model(ids, attention_mask=(ids != 0).long()).logits[0, :16]
        off[n] = float((got - alone).abs().max() / alone.abs().max())
        print(f"transformers {transformers.__version__}: beside a row of {n} tokens, logits are {off[n]:.1e} off what they are alone")
assert off[24] < 1e-4 and off[64] > 1e-2, "the behaviour has changed"
PYTHON
