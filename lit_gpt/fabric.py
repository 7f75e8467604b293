"""Lightning Fabric on one device or several, in the precision that suits them."""

import atexit
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lit_gpt.args import Precision
from lit_gpt.args.cluster import PATIENCE, ClusterArgs
from lit_gpt.errors import UserError
from lit_gpt.lightning import DDPStrategy, Fabric
from lit_gpt.resources import keep_few_compiled_matmuls

_FABRIC_RUN = ("LT_CLI_USED", "LT_ACCELERATOR", "LT_STRATEGY", "LT_DEVICES", "LT_NUM_NODES", "LT_PRECISION")
"""Variables with which `fabric run` would overrule the script's own flags."""
_LEADER = "LIT_GPT_LEADER"
"""Variable with the process that starts the others of a machine, which they have of it."""


def make_fabric(
    precision: Precision | None = None,
    seed: int | None = None,
    mixed: bool = False,
    cluster: ClusterArgs | None = None,
) -> Fabric:
    """Returns Fabric on the GPU, or the GPUs, if there are some; a seed seeds all random generators.

    With several devices, this process goes on as one of as many, and all but the first one print nothing but errors.

    Args:
        precision: None is `default_precision`.
        seed: None leaves the generators alone.
        mixed: prefer mixed precision where `precision` is None.
        cluster: how many devices; None is one, in a script that has no use for more.

    Raises:
        UserError: more devices than there are, or another number than torchrun started.
    """
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"  # not a Mac's GPU, for which nothing of ours is tested
    if precision is None:
        precision = default_precision(accelerator, accelerator == "cuda" and torch.cuda.is_bf16_supported(), mixed)
    if accelerator == "cpu":
        keep_few_compiled_matmuls()
    devices, num_nodes = _size(cluster)
    if devices * num_nodes == 1:
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    else:
        fabric = _one_of_several(accelerator, devices, num_nodes, precision)
    if seed is not None:
        fabric.seed_everything(seed, verbose=False)
    return fabric


def _one_of_several(accelerator: str, devices: int, num_nodes: int, precision: Precision) -> Fabric:
    """Returns Fabric in one of several processes, after starting those that torchrun has not.

    Raises:
        UserError: this machine has fewer GPUs.
    """
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise UserError(f"--devices {devices}: this machine has {torch.cuda.device_count()} GPUs")
    for name in _FABRIC_RUN:
        os.environ.pop(name, None)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # it tells of each process that it starts
    # what it is for here: it starts processes, finds their environment (torchrun, Slurm), and connects them
    strategy = DDPStrategy(timeout=PATIENCE)
    fabric = Fabric(
        accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy, precision=precision
    )
    with _ending_with_leader():
        fabric.launch()
    atexit.register(_disconnect)
    if fabric.global_rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 until the process ends
    return fabric


@contextmanager
def _ending_with_leader() -> Iterator[None]:
    """Within it, a process that another one has started ends when that one does.

    Until all are connected nobody else would tell it, and it would wait for `PATIENCE`. A process that starts others
    leaves its number to them.
    """
    leader = os.environ.pop(_LEADER, None)
    if leader is None:
        os.environ[_LEADER] = str(os.getpid())
        try:
            yield
        finally:
            del os.environ[_LEADER]
        return
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.5):
            if str(os.getppid()) != leader:
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _disconnect() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _size(cluster: ClusterArgs | None) -> tuple[int, int]:
    """Returns the devices of a machine and the number of machines, by the flags and by what torchrun started.

    Raises:
        UserError: the two contradict each other.
    """
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        devices, num_nodes = (cluster.devices or 1, cluster.num_nodes) if cluster else (1, 1)
        if num_nodes > 1 and "SLURM_NTASKS" not in os.environ:
            raise UserError(
                f"--num_nodes {num_nodes}: start this on each machine by torchrun --nnodes {num_nodes} "
                "(docs/more_devices.md)"
            )
        return devices, num_nodes
    if cluster is None and world > 1:
        raise UserError(f"torchrun started {world} processes, and this takes one; start it without torchrun")
    wanted = (local, world // local)
    if cluster is not None:
        given = (cluster.devices or local, cluster.num_nodes if cluster.num_nodes > 1 else wanted[1])
        if given != wanted:
            raise UserError(
                f"--devices {given[0]} --num_nodes {given[1]}: torchrun started {wanted[0]} processes on each of "
                f"{wanted[1]} machines; leave out the two flags"
            )
    return wanted


def default_precision(device_type: str, bf16: bool, mixed: bool) -> Precision:
    """Returns the precision of a run that names none: 16 bits on a GPU, 32 on a CPU.

    Args:
        device_type: cuda or cpu.
        bf16: whether the GPU has bfloat16; fp16 otherwise.
        mixed: weights in 32 bits and matmuls in 16, as full finetuning takes; weights in 16 bits otherwise.
    """
    if device_type == "cpu":
        return "32-true"
    if mixed:
        return "bf16-mixed" if bf16 else "16-mixed"
    return "bf16-true" if bf16 else "16-true"
