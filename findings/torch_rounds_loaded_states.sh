#!/usr/bin/env bash
# Training of a bfloat16 parameter with an optimizer that keeps its averages in fp32 (Adafactor of transformers), stopped
# after 10 steps and continued from state_dict.
#
# One would guess that load_state_dict gives an optimizer the state that the other one had: what is in the file is fp32.
# What happens: load_state_dict of torch.optim casts every floating-point state but "step" to the dtype of its parameter.
# The averages come back rounded to 8 bits, and the run that was continued goes another way than the one that was not
# stopped. Nothing warns; the optimizer turns them to fp32 again with the next step, so that dtypes do not show it after.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet transformers==5.23.0
"$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import copy

import torch
import transformers
from transformers.optimization import Adafactor

torch.manual_seed(0)
start = (torch.randn(128, 128) * 0.02).bfloat16()  # as weights of a model are
gradients = torch.randn(20, 128, 128).bfloat16()


def make(values):
    p = torch.nn.Parameter(values.clone())
    return p, Adafactor([p], lr=1e-3, relative_step=False, scale_parameter=False)


def steps(p, optimizer, some):
    for g in some:
        p.grad = g.clone()
        optimizer.step()


def dtypes(optimizer, p):
    return {name: x.dtype for name, x in optimizer.state[p].items() if torch.is_tensor(x) and x.dim()}


p, optimizer = make(start)
steps(p, optimizer, gradients[:10])
saved, state = p.detach().clone(), copy.deepcopy(optimizer.state_dict())
q, continued = make(saved)
continued.load_state_dict(state)
r, exact = make(saved)
exact.state[r] = copy.deepcopy(state["state"][0])  # as it was
before, after = dtypes(optimizer, p), dtypes(continued, q)
name = next(iter(before))
rounded = float((continued.state[q][name].float() / optimizer.state[p][name] - 1).abs().max())
steps(p, optimizer, gradients[10:])
steps(q, continued, gradients[10:])
steps(r, exact, gradients[10:])
n = int((p != q).sum())
print(f"torch {torch.__version__}, transformers {transformers.__version__}: {name} is {before[name]}, loaded {after[name]}, and")
print(f"off by up to {rounded:.1e} of it; after 10 more steps {n} of {p.numel()} weights differ, with the state as it was {int((p != r).sum())}")
assert set(before.values()) == {torch.float32} and set(after.values()) == {torch.bfloat16}, "the behaviour has changed"
assert n > 0 and torch.equal(p, r), "the behaviour has changed"
PYTHON
