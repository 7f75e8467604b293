#!/usr/bin/env bash
# A run stopped in the middle of an epoch and continued in another process: set_seed as before, accelerate's load_state,
# then skip_first_batches by the number of batches done.
#
# One would guess: with the states of all generators restored, the rest of the epoch is what the first process had not
# seen yet.
# What happens: load_state restores generators as they were in the middle of the epoch, the new loader draws its order from
# there, and the batches skipped are the first of that other order. Some rows come twice in the epoch, and others never.
# With DataLoaderConfiguration(use_seedable_sampler=True) in both processes, the rest is the rest.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet accelerate==1.15.0
cd "$work"
cat > run.py <<'PYTHON'
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, set_seed

seedable, part = sys.argv[1] == "seedable", sys.argv[2]
set_seed(0)
accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seedable))
loader = accelerator.prepare(torch.utils.data.DataLoader(torch.arange(12), batch_size=2, shuffle=True))
seen = []
if part == "first":
    for i, batch in enumerate(loader):
        seen += batch.tolist()
        if i == 2:
            accelerator.save_state(f"state-{seedable}")
            break
else:
    accelerator.load_state(f"state-{seedable}")
    for batch in skip_first_batches(loader, 3):
        seen += batch.tolist()
Path(f"{sys.argv[1]}-{part}.json").write_text(json.dumps(seen))
PYTHON
for sampler in default seedable; do
    for part in first rest; do
        "$work/venv/bin/python" run.py $sampler $part 2> log || { tail -20 log; exit 1; }
    done
done
"$work/venv/bin/python" - <<'PYTHON'
import json
from importlib.metadata import version
from pathlib import Path

print("accelerate", version("accelerate"), "torch", version("torch"))
missed = {}
for sampler in ("default", "seedable"):
    first, rest = (json.loads(Path(f"{sampler}-{part}.json").read_text()) for part in ("first", "rest"))
    missed[sampler] = sorted(set(range(12)) - {*first, *rest})
    print(f"{sampler}: before the stop {first}, after it {rest}; never seen: {missed[sampler]}")
assert missed["default"] and not missed["seedable"], "the behaviour has changed"
PYTHON
