"""The server's life: it listens, loads, answers, and ends what runs when it is told to stop."""

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from lit_gpt.args import ServeArgs
from lit_gpt.args.cluster import ClusterArgs
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.generation.thread import EngineThread
from lit_gpt.parallel.team import Team
from lit_gpt.parallel.watch import watched
from lit_gpt.serve.app import make_app
from lit_gpt.serve.connection import Connection
from lit_gpt.serve.doors import Doors
from lit_gpt.serve.guard import LOOPBACK, Guard
from lit_gpt.serve.load import Loaded, What, load
from lit_gpt.serve.replicas import Replicas

try:
    import resource
except ImportError:  # Windows
    resource = None

_BACKLOG = 2_048
_CONNECTIONS = 65_536
"""Connections, and other open files, that the server asks the system for."""
_IDLE_SECONDS = 75
"""Seconds that an idle connection is kept: longer than clients keep theirs, or a request may meet its end."""
_LAST_SECONDS = 5
"""Seconds that clients get at the end to take what is left of their answers."""


def serve(what: What, args: ServeArgs) -> None:
    """Serves models until the process is told to stop.

    Raises:
        UserError: the address cannot be had, or what is to be served cannot be loaded.
    """
    key = _key_of(args)
    _allow_connections()
    fabric = make_fabric(what.precision, cluster=ClusterArgs(args.devices))
    team = Team.of_world()
    replicas = Replicas(fabric, team)

    def loaded() -> Loaded:
        models = load(what, args, fabric)
        team.wait()  # none answers before all can
        return models

    with watched(fabric, team):
        listening = replicas.listen(args, listen)
        if not _is_loopback(args.host) and key is None and team.leads:
            print(
                f"warning: everybody who reaches {args.host} can use this server; --api_key env:NAME asks for a key",
                file=sys.stderr,
            )
        server = Server(loaded, args, key, listening, replicas=replicas)
        try:
            asyncio.run(server.main())
        finally:
            listening.close()
        replicas.end()
    if server.loading.is_alive():  # as the interpreter ended under it, torch's code there would abort this process
        sys.stdout.flush()
        os._exit(0)


def _allow_connections() -> None:
    """Lets this process have as many connections as the system allows; many systems begin with 256 or 1,024."""
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, _CONNECTIONS)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _key_of(args: ServeArgs) -> str | None:
    """Returns the key that requests have to carry; raises UserError if it is empty or its variable is not set."""
    key = args.api_key
    if key is not None and key.startswith("env:"):
        key = os.environ.get(key[4:])
    if key is None and args.api_key is None:
        return None
    if not key or not key.isascii() or not key.isprintable() or key != key.strip():
        raise UserError(f"--api_key {'' if args.api_key is None else args.api_key[:4]}...: the key is empty, its "
                        "variable is not set, or it has characters that no header can carry")  # fmt: skip
    return key


def listen(args: ServeArgs, shared: bool = False) -> socket.socket:
    """Returns a socket that listens, before minutes of loading show that it cannot; raises UserError if it cannot.

    Args:
        shared: whether other processes listen on the same port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            args.host, args.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as e:
        raise UserError(f"--host {args.host} is no address of this machine ({e.strerror or e})") from e
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as e:
        listening.close()
        raise UserError(
            f"--host {args.host} --port {args.port} cannot be listened on ({e.strerror or e}); pass another --port"
        ) from e
    return listening


def _is_loopback(host: str) -> bool:
    """Returns whether an address is that of this machine alone."""
    return host in LOOPBACK or host.startswith("127.")


class Server(uvicorn.Server):
    """A server of uvicorn that loads the model while it listens, and drains before it stops.

    Args:
        load: loads what is served; called on a thread of its own.
        key: key that requests have to carry; None for none.
        listening: a socket that listens.
        replicas: the other servers on its port.
    """

    def __init__(
        self,
        load: Callable[[], Loaded],
        args: ServeArgs,
        key: str | None,
        listening: socket.socket,
        replicas: Replicas | None = None,
    ) -> None:
        self.load_models, self.args, self.listening = load, args, listening
        self.replicas = replicas or Replicas()
        self.doors = Doors(args, key)
        self.admission, self.metrics, self.serving = self.doors.admission, self.doors.metrics, self.doors.state
        hosts = {*LOOPBACK, args.host} if _is_loopback(args.host) else None
        app = Guard(make_app(self.serving), **self.doors.guard(hosts))
        config = uvicorn.Config(
            app,
            http=Connection,
            log_level="warning",
            access_log=False,
            ws="none",
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=2 * _LAST_SECONDS,
            timeout_keep_alive=_IDLE_SECONDS,
            proxy_headers=False,
        )
        super().__init__(config)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.error: BaseException | None = None
        self.loading = threading.Thread(target=self._load, daemon=True)
        self._closing: asyncio.Task[None] | None = None

    @property
    def thread(self) -> EngineThread | None:
        """The engine's thread, once there is one."""
        return self.doors.thread

    async def main(self) -> None:
        """Serves until it is told to stop; raises what loading the model raised."""
        self.loop = asyncio.get_running_loop()
        self.loading.start()
        try:
            await self.serve(sockets=[self.listening])
        finally:
            self.doors.stop()
        if self.error is not None:
            raise self.error

    def _load(self) -> None:
        """Loads the models on a thread of its own, during which the server answers 503."""
        assert self.loop is not None
        try:
            loaded = self.load_models()
            self.loop.call_soon_threadsafe(self._open, loaded)
        except BaseException as e:
            self.error = e
            self.should_exit = True

    def _open(self, loaded: Loaded) -> None:
        """Begins to answer."""
        self.doors.open(loaded)
        host, port = self.listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"Serving {', '.join(loaded.models.by_name)} on http://{shown}:{port}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Lets what runs end at the first signal, and ends at once at the second one."""
        if not self.replicas.take_signal(sig):
            return
        if self._closing is None and self.serving.service is not None and self.loop is not None:
            self._closing = self.loop.create_task(self._close())
            self.loop.call_soon_threadsafe(lambda: None)  # wakes the loop, which a signal does not
            return
        self.force_exit = self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes all connections; those whose clients neither send nor take the rest are broken off."""
        assert self.loop is not None
        self.loop.call_later(_LAST_SECONDS, self._break_off)
        await super().shutdown(sockets)

    def _break_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def _close(self) -> None:
        assert self.serving.service is not None
        await self.serving.service.close(self.args.drain_seconds)
        self.should_exit = True
