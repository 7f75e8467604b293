#!/usr/bin/env bash
# AdamW of torch for a parameter in bfloat16 (a model loaded in 16 bits and trained as it is): the second moment after one
# large gradient, as of a bad batch.
#
# One would guess that rounding makes the average of squares a little noisy, and that it forgets the large gradient at the
# rate beta2 = 0.999, within some thousands of steps, as in fp32.
# What happens: 0.999 of a number of 8 bits rounds to the number itself, so the average never falls. After 5000 steps with
# gradients a hundredth as large it stands where the first one put it, fused or not, and the weight moves at a third of the
# pace for the rest of the run. With beta2 = 0.99 it falls.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" - <<'PYTHON'
import torch

found = {}
for beta in (0.999, 0.99):
    for dtype in (torch.float32, torch.bfloat16):
        for fused in (False, True):
            p = torch.nn.Parameter(torch.ones(64, dtype=dtype))
            optimizer = torch.optim.AdamW([p], lr=0.0, betas=(0.9, beta), fused=fused)
            for i in range(5000):
                p.grad = torch.full_like(p, 1.0 if i == 0 else 0.01)
                optimizer.step()
            state = optimizer.state[p]
            pace = float(state["exp_avg"][0].float() / state["exp_avg_sq"][0].float().sqrt())
            found[beta, dtype, fused] = float(state["exp_avg_sq"][0])
            print(
                f"torch {torch.__version__}, {dtype}, fused {fused}, beta2 {beta}: the second moment is "
                f"{found[beta, dtype, fused]:.2e}, a step is {pace:.2f} of the learning rate"
            )
for fused in (False, True):
    assert found[0.999, torch.float32, fused] < 1.2e-4, "the behaviour has changed"
    assert found[0.999, torch.bfloat16, fused] > 9e-4, "the behaviour has changed"
    assert found[0.99, torch.bfloat16, fused] < 5e-4, "the behaviour has changed"
PYTHON
