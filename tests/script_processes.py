"""Scripts of the project in processes of their own, most of which do not import torch and matplotlib anew.

To import them is most of what a short script takes. So a process that has done that, and nothing else, waits for
scripts and forks for each. What is forked is a process as any other, to be killed and waited for; it imports all of
`lit_gpt`, runs the script from its first line, and ends as Python ends. The first start of a script, and one with
another environment, is a process from the very beginning; so is each where there is a GPU, which no fork can use.
"""

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOT_OF_THE_SCRIPT = ("PYTEST_CURRENT_TEST",)
"""Variables of the environment that change from test to test and that no script looks at."""
_started: set[str] = set()
"""Scripts that a process from the very beginning has run."""


def run(*argv: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a script of the project in a process of its own, from another folder, and returns what it said."""
    process = start(*argv, cwd=cwd, env=env, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=300)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(list(map(str, argv)), process.returncode, out, err)


def start(*argv: object, cwd: Path, env: dict[str, str] | None = None, stderr: int = subprocess.STDOUT, anew=False):
    """Starts a script of the project, and returns its process: a Popen, or what has the same methods and pipes.

    Args:
        argv: the script's path from the root, and its arguments.
        env: variables that the process has besides those of this one.
        stderr: subprocess.STDOUT or subprocess.PIPE.
        anew: whether it has to be a process from the very beginning.
    """
    script, *rest = map(str, argv)
    environment = _of_the_script({**os.environ, **(env or {})})
    forker = None if anew or script not in _started else _forker(json.dumps(environment))
    _started.add(script)
    if forker is not None:
        return Forked(forker, [str(ROOT / script), *rest], cwd, stderr)
    command = [sys.executable, str(ROOT / script), *rest]
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=stderr)


def _of_the_script(environment: dict[str, str]) -> dict[str, str]:
    """Returns what a script can know of an environment."""
    return {name: value for name, value in sorted(environment.items()) if name not in NOT_OF_THE_SCRIPT}


@cache
def first_environment() -> dict[str, str]:
    """Returns the environment of the first script; that of other scripts is the same, or they are not forked."""
    return _of_the_script(dict(os.environ))


@cache
def can_fork() -> bool:
    """Returns whether processes can be forked here after torch was imported."""
    import torch

    return sys.platform == "linux" and not torch.cuda.is_available()


def _forker(environment: str) -> socket.socket | None:
    """Returns the socket of the process that forks, or None where a script with this environment has to start anew."""
    return _started_forker() if can_fork() and environment == json.dumps(first_environment()) else None


@cache
def _started_forker() -> socket.socket:
    """Starts the process that forks; it ends when this one does, which closes the socket."""
    ours, theirs = socket.socketpair()
    command, quiet = [sys.executable, __file__, str(theirs.fileno())], subprocess.DEVNULL
    environment = first_environment()
    subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=quiet, stdout=quiet, stderr=quiet)
    theirs.close()
    return ours


class Forked:
    """A process that another one forked, with the methods and pipes of a Popen."""

    def __init__(self, forker: socket.socket, argv: list[str], cwd: Path, stderr: int) -> None:
        self.args, self.returncode, self.stderr = argv, None, None
        reading, writing = os.pipe()
        self.stdout, errors = open(reading, encoding="utf-8"), writing  # noqa: SIM115 it is the caller's
        if stderr == subprocess.PIPE:
            reading, errors = os.pipe()
            self.stderr = open(reading, encoding="utf-8")  # noqa: SIM115
        self._told, tell = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with tell:
            request = json.dumps([argv, str(cwd)]).encode()
            socket.send_fds(forker, [len(request).to_bytes(4, "big")], [writing, errors, tell.fileno()])
            forker.sendall(request)
        for descriptor in {writing, errors}:
            os.close(descriptor)
        self.pid = int(self._told.recv(32))
        """Of the process, which is not this one's child."""

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end of the process, and returns its exit code, or the signal that ended it below zero."""
        if self.returncode is None:
            self._told.settimeout(timeout)
            try:
                self.returncode = int(self._told.recv(32))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._told.close()
        return self.returncode

    def poll(self) -> int | None:
        """Returns the exit code, or None if the process goes on."""
        try:
            return self.wait(timeout=0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process, if it goes on."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills the process, if it goes on."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        """Reads what is left of both pipes, waits for the end, and returns the texts."""
        said = {}
        readers = [threading.Thread(target=lambda pipe=pipe: said.update({pipe: pipe.read()}), daemon=True)
                   for pipe in (self.stdout, self.stderr) if pipe]  # fmt: skip
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        for pipe in said:
            pipe.close()
        return said[self.stdout], said.get(self.stderr)


def _serve(requests: socket.socket) -> list[str]:
    """Forks for each request until there are no more, and returns the script and its arguments in each fork."""
    while True:
        length, descriptors, _, _ = socket.recv_fds(requests, 4, 3)
        if not length:
            os._exit(0)
        argv, cwd = json.loads(requests.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
        out, err, tell = descriptors
        if os.fork() == 0:  # this process waits for the script, and tells how it ended
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if pid := os.fork():
                with socket.socket(fileno=tell) as telling:
                    for descriptor in {out, err, requests.fileno()}:
                        os.close(descriptor)
                    telling.send(str(pid).encode())
                    telling.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
                os._exit(0)
            os.dup2(out, 1), os.dup2(err, 2)
            for descriptor in {out, err, tell, requests.detach()}:
                os.close(descriptor)
            os.chdir(cwd)
            return argv
        for descriptor in {out, err, tell}:
            os.close(descriptor)


if __name__ == "__main__":
    variables = dict(os.environ)
    import matplotlib.figure  # noqa: F401
    import torch._dynamo  # an optimizer of torch imports it, and it sets a variable  # noqa: F401

    os.environ.clear(), os.environ.update(variables)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    sys.argv = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
