#!/usr/bin/env bash
# One training of a small network with dropout, with and without a pass over a validation set after each epoch, under
# torch.no_grad and in eval mode, by a DataLoader that neither shuffles nor has workers.
#
# One would guess that looking at the validation loss changes nothing: nothing in it is random.
# What happens: each iteration over a DataLoader begins with a number drawn from torch's global generator, as the seed of
# workers, even if there are none. After the first validation all dropout masks and shuffles are others, and so are the
# weights at the end: the interval of validation is a seed. A DataLoader with generator=torch.Generator() of its own draws
# from that one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" - <<'PYTHON'
import torch
from torch.utils.data import DataLoader, TensorDataset

data = TensorDataset(torch.randn(32, 8, generator=torch.Generator().manual_seed(1)))


def trained(validation):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Dropout(0.5), torch.nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        model.train()
        for (x,) in DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(2)):
            optimizer.zero_grad()
            (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for (x,) in validation or ():
                model(x)
    return model[0].weight.detach()


none, again = trained(None), trained(None)
plain = trained(DataLoader(data, batch_size=8))
own = trained(DataLoader(data, batch_size=8, generator=torch.Generator()))
print(f"torch {torch.__version__}: twice without validation, weights are equal: {torch.equal(none, again)}")
print(f"with validation they differ by up to {(plain - none).abs().max():.3f}")
print(f"with a generator for its loader they are equal: {torch.equal(own, none)}")
assert torch.equal(none, again) and torch.equal(own, none) and not torch.equal(plain, none), "the behaviour has changed"
PYTHON
