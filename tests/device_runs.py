"""Scripts run one after the other in each of several processes, which torchrun starts once for all of them."""

import json
import os
import runpy
import socket
import subprocess
import sys
import threading
from pathlib import Path

from script_processes import ROOT

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--master-port"]
GLOO = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""Variables with which processes find each other on a machine without a network, and each has one thread."""


def script(argv):
    """Runs a script in this process; `argv` begins with its path from the root, and `{rank}` is this process's."""
    from lit_gpt.cli import parse

    path, *words = (str(word).format(rank=os.environ.get("RANK", "0")) for word in argv)
    main = runpy.run_path(str(ROOT / path))["main"]
    main(**parse(main, words))


def together(runs, n, cwd, last):
    """Runs all of these command lines in each of `n` processes, and returns what every one said and how it ended.

    Args:
        last: a further command line, in which the memory of rank 1 runs out: it ends all.

    Returns:
        Rank -> for each run, the message of the user's mistake that ended it, or None; what all said, and their errors.
    """
    lines = [list(map(str, argv)) for argv in [*runs, last]]
    command = [*TORCHRUN, str(_free_port()), "--nproc-per-node", str(n), __file__, json.dumps(lines)]
    environment = os.environ | GLOO | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1500)
    paths = [cwd / f"ended-{rank}.json" for rank in range(n)]
    assert done.returncode and all(path.is_file() for path in paths), done.stdout[-3000:] + done.stderr[-6000:]
    return [json.loads(path.read_text()) for path in paths], done.stdout, done.stderr


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _run_all(runs):
    from lit_gpt.errors import UserError

    ended = []
    for argv in runs[:-1]:
        try:
            script(argv)
            ended.append(None)
        except UserError as e:
            ended.append(str(e))
        threads = [thread.name for thread in threading.enumerate()]
        assert "watch" not in threads, threads  # torch would abort a process that ends while it asks the store
    Path(f"ended-{os.environ['RANK']}.json").write_text(json.dumps(ended))
    _run_out_of_memory(runs[-1])


def _run_out_of_memory(argv):
    """Runs a script as its command line does, with a device that has no memory left in the second step."""
    import torch

    from lit_gpt.cli import run
    from lit_gpt.training import loop

    forward_backward, n_calls = loop.forward_backward, 0

    def failing(*args, **kwargs):
        nonlocal n_calls
        n_calls += 1
        if n_calls > 2 and os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward_backward(*args, **kwargs)

    loop.forward_backward = failing
    path, *sys.argv[1:] = argv
    run(runpy.run_path(str(ROOT / path))["main"])


if __name__ == "__main__":
    _run_all(json.loads(sys.argv[1]))
