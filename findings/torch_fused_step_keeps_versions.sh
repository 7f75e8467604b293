#!/usr/bin/env bash
# The version counter of a parameter (`Tensor._version`) after a step of torch's AdamW with fused=True.
#
# One would guess: it grows, as with every in-place operation and with foreach=True, so that what was made of the weights
# (packed, quantized, compiled) can be told to be old by it.
#
# What happens: the fused kernel writes to the parameter and leaves the counter as it was. Whoever keeps copies of weights
# by it goes on with those of the first step. `torch.autograd.graph.increment_version` makes up for that.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
import torch

grown = {}
for how in ("fused", "foreach"):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([p], lr=0.1, **{how: True})
    p.grad = torch.ones(3)
    before, values = p._version, p.detach().clone()
    optimizer.step()
    grown[how] = p._version - before
    print(f"torch {torch.__version__}, {how}: the weights changed {not torch.equal(p, values)}, the version by {grown[how]}")
assert grown["foreach"] > 0 == grown["fused"], "the behaviour has changed"
PYTHON
