"""Several servers behind one port, each a process with a device and a copy of the model of its own.

The system gives each new connection to one of the processes that listen on the port (SO_REUSEPORT).
"""

import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from lit_gpt.args import ServeArgs
from lit_gpt.errors import UserError
from lit_gpt.lightning import Fabric
from lit_gpt.parallel.team import ALONE, Team

_AT_ONCE = 1.0
"""Seconds within which a second signal is the first one, which the terminal and the leader have sent."""


class Replicas:
    """What one of several servers knows of the others; a server without others asks it for nothing.

    Args:
        fabric: has started the processes, if torchrun has not.
    """

    def __init__(self, fabric: Fabric | None = None, team: Team = ALONE) -> None:
        self.team = team
        self.children = getattr(fabric._strategy._launcher, "procs", None) or [] if fabric else []
        self.told: float | None = None

    def listen(self, args: ServeArgs, listen: Callable[..., socket.socket]) -> socket.socket:
        """Returns a socket that listens on the port that all share, which the leader chooses.

        Args:
            listen: returns a socket for a server's arguments.

        Raises:
            UserError: the port cannot be had, or this system cannot share one.
        """
        if self.team.is_alone:
            return listen(args)
        if not hasattr(socket, "SO_REUSEPORT"):
            raise UserError(f"--devices {self.team.size}: this system has no port that several processes listen on")
        if self.team.leads:
            listen(args).close()  # another server's port is refused, also if that shares it
        listening = listen(args, shared=True) if self.team.leads else None
        port = self.team.lead(listening.getsockname()[1] if listening else 0)
        return listening or listen(replace(args, port=port), shared=True)

    def take_signal(self, number: int) -> bool:
        """Returns whether to heed a signal; the leader passes it on to the processes that it has started."""
        now = time.monotonic()
        again = self.told is not None and now - self.told < _AT_ONCE and not self.team.leads
        self.told = now if self.told is None else self.told
        for child in self.children:
            if child.poll() is None:
                child.send_signal(number)
        return not again

    def end(self) -> None:
        """Has the processes that the leader has started end, if its own server has ended without a signal."""
        if self.told is None:
            self.take_signal(signal.SIGTERM)
