"""Finetune scripts run one after the other in each of several processes, which torchrun starts once for all of them."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

from script_processes import ROOT

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--master-port"]
GLOO = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""Variables with which processes find each other on a machine without a network, and each has one thread."""


def finetune(argv):
    """Runs finetune/<method>.py in this process; `argv` begins with the method."""
    from lit_gpt.cli import parse

    main = runpy.run_path(str(ROOT / "finetune" / f"{argv[0]}.py"))["main"]
    main(**parse(main, list(map(str, argv[1:]))))


def together(runs, n, cwd, port):
    """Runs all of these command lines in each of `n` processes, and returns what every one said and how it ended.

    Returns:
        Rank -> for each run, the message of the user's mistake that ended it, or None.
    """
    command = [
        *TORCHRUN,
        str(port),
        "--nproc-per-node",
        str(n),
        __file__,
        json.dumps([list(map(str, r)) for r in runs]),
    ]
    environment = os.environ | GLOO | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [json.loads((cwd / f"ended-{rank}.json").read_text()) for rank in range(n)], done.stdout


def _run_all(runs):
    from lit_gpt.errors import UserError

    ended = []
    for argv in runs:
        try:
            finetune(argv)
            ended.append(None)
        except UserError as e:
            ended.append(str(e))
    Path(f"ended-{os.environ['RANK']}.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    _run_all(json.loads(sys.argv[1]))
