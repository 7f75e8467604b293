"""The all-gather of processes that compute on the CPUs of one machine: through memory that all of them see.

gloo sends what processes of one machine tell each other through sockets, which takes ten times as long as copying.
"""

import os
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.parallel.team import Team

_BYTES = 2**25
"""Size of the shared memory, whatever the number of processes: it is filled many times over."""
_SHARED = Path("/dev/shm")
"""Linux's folder of files that are in memory only."""


class HostGather:
    """An all-gather as `FSDPModule.set_custom_all_gather` takes it; all processes call it in the same order.

    A process puts a piece of what it has into the shared memory, waits until all have done so, and copies those of the
    others. There is room for two pieces of each: the last one is read by all when the next one is announced.

    Args:
        memory: shared bytes, (2, processes, bytes of a piece).
    """

    def __init__(self, team: Team, memory: Tensor) -> None:
        self.team, self.memory, self.turn = team, memory, 0

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns a tensor to put all parts into."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> None:
        """Puts the input of every process into the output, one after the other; it is done when this returns."""
        rank, most = self.team.rank, self.memory.size(2)
        mine = input_tensor.view(torch.uint8)
        whole = output_tensor.view(torch.uint8).view(self.team.size, -1)
        if input_tensor.data_ptr() != whole[rank].data_ptr():
            whole[rank].copy_(mine)
        for start in range(0, len(mine), most):
            piece = slice(start, min(start + most, len(mine)))
            pieces = self.memory[self.turn, :, : piece.stop - piece.start]
            self.turn = 1 - self.turn
            pieces[rank].copy_(mine[piece])
            self.team.wait()
            for other in range(self.team.size):
                if other != rank:
                    whole[other, piece].copy_(pieces[other])


def host_gather(team: Team) -> HostGather | None:
    """Returns an all-gather through shared memory; None where the processes are not on one machine that has it."""
    if len({(*where, socket.gethostname()) for where in team.every(_machine())}) > 1:
        return None
    n_bytes = _BYTES // (2 * team.size)
    path = Path(team.lead(_made(2 * team.size * n_bytes) if team.leads else ""))
    memory = None
    if path.name:
        with suppress(OSError, RuntimeError):  # not all of them see the same folder
            shared = torch.from_file(str(path), shared=True, size=2 * team.size * n_bytes, dtype=torch.uint8)
            memory = shared.view(2, team.size, n_bytes)
    found = team.every(memory is not None)
    if team.leads and path.name:
        path.unlink(missing_ok=True)  # it is there as long as a process has it
    return HostGather(team, memory) if memory is not None and all(found) else None


def _machine() -> tuple[str, ...]:
    """Returns what tells this machine, since it was started, from others."""
    with suppress(OSError):
        return (Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"),)
    return ()


def _made(n_bytes: int) -> str:
    """Returns the path of a new file in memory; "" where there is no such folder, or no room in it."""
    with suppress(OSError):
        number, path = tempfile.mkstemp(prefix="lit-gpt-", dir=_SHARED)
        try:
            os.posix_fallocate(number, 0, n_bytes)  # memory that is found missing later ends the process
            return path
        except OSError:
            os.unlink(path)
        finally:
            os.close(number)
    return ""
