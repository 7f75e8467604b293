#!/usr/bin/env bash
# The memory that the first `fully_shard` (FSDP2) takes in a process, for whatever layer, where nothing is compiled.
#
# One would guess: none to speak of; a layer of 4 x 4 has 80 bytes, and torch.compile is not asked for.
#
# What happens: the call imports torch._dynamo, about 200 modules and 26 MB of memory of the process's own. Whoever compares
# the memory of divided weights with what they should take finds that much too much in each process, whatever the model.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" - <<'PYTHON'
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def own_megabytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) / 1000


with tempfile.NamedTemporaryFile() as file:
    dist.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    layer = torch.nn.Linear(4, 4)
    before, had = own_megabytes(), "torch._dynamo" in sys.modules
    fully_shard(layer, mesh=mesh)
    grown, has = own_megabytes() - before, "torch._dynamo" in sys.modules
    print(f"torch {torch.__version__}: dividing a layer of 4 x 4 took {grown:.0f} MB; torch._dynamo is imported: {had}, then {has}")
    dist.destroy_process_group()
assert not had and has and grown > 15, "the behaviour has changed"
PYTHON
