"""Scripts of the project in processes of their own, most of which do not import torch and matplotlib anew.

To import them is most of what a short script takes. So a process that has done that, and nothing else, waits for
scripts and forks for each. What is forked is a process as any other, to be killed and waited for; it imports all of
`lit_gpt`, runs the script from its first line, and ends as Python ends. The first start of a script in a run of the
tests, and one with another value of what Python or torch reads when it starts, is a process from the very beginning;
so is each where there is a GPU, which no fork can use.
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
from importlib.machinery import SourceFileLoader
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOT_OF_THE_SCRIPT = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "PYTORCH_NVML_BASED_CUDA_CHECK")
NOT_OF_THE_SCRIPT += ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
"""Variables that no user's shell has: those of a test, and what torch and Lightning set in this process."""
READ_AT_THE_START = ("PYTHON", "LD_", "LC_", "LANG", "TZ", "HOME", "TMP", "XDG_", "MPL", "MALLOC_")
READ_AT_THE_START += ("OMP_", "GOMP_", "KMP_", "MKL_", "ATEN_", "TORCH", "PYTORCH", "CUDA", "NCCL_", "GLOO_")
"""Beginnings of the names of variables that Python, torch and matplotlib read when they start or are imported."""
_left: dict[str, str | None] = {}
"""Such variables that a library has set or removed in this process, with what they are now: no test means them."""
_started: set[str] = set()
"""Scripts that a process from the very beginning has run."""
_started_by_all: list[Path] = []
"""A folder, if any, in which the workers of pytest-xdist tell each other of such scripts."""


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
    if not anew and _has_started(script) and can_fork() and not _is_read_at_the_start(environment):
        return Forked(_forker(), [str(ROOT / script), *rest], cwd, stderr, environment)
    command = [sys.executable, str(ROOT / script), *rest]
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=stderr)


def _of_the_script(environment: dict[str, str]) -> dict[str, str]:
    """Returns what a script can know of an environment."""
    not_meant = {name for name, value in _left.items() if environment.get(name) == value}
    meant = {name: value for name, value in environment.items() if name not in not_meant}
    meant |= {name: FIRST_ENVIRONMENT[name] for name in not_meant if name in FIRST_ENVIRONMENT}
    return {name: value for name, value in sorted(meant.items()) if name not in NOT_OF_THE_SCRIPT}


FIRST_ENVIRONMENT = _of_the_script(dict(os.environ))
"""The environment of this process before the first test, and that of the process that forks."""


def begin_test() -> None:
    """Notes what is another in the environment before a test begins: libraries set variables when they are imported."""
    _left.clear()
    for name in {*FIRST_ENVIRONMENT, *os.environ}:
        if name.startswith(READ_AT_THE_START) and FIRST_ENVIRONMENT.get(name) != os.environ.get(name):
            _left[name] = os.environ.get(name)


def _is_read_at_the_start(environment: dict[str, str]) -> bool:
    """Returns whether this environment has another value of what a fork would read too late."""
    other = {name for name, _ in FIRST_ENVIRONMENT.items() ^ environment.items()}
    return any(name.startswith(READ_AT_THE_START) for name in other)


def share_starts(folder: Path) -> None:
    """Lets the workers of pytest-xdist know by files in a folder which scripts one of them has started already."""
    folder.mkdir(exist_ok=True)
    _started_by_all[:] = [folder]


def _has_started(script: str) -> bool:
    """Returns whether a process from the very beginning has run a script, in any of pytest-xdist's workers."""
    if script in _started:
        return True
    _started.add(script)
    if not _started_by_all:
        return False
    try:
        (_started_by_all[0] / script.replace("/", "-")).touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


@cache
def can_fork() -> bool:
    """Returns whether processes can be forked here after torch was imported."""
    import torch

    return sys.platform == "linux" and not torch.cuda.is_available()


def start_forker(root: Path, environment: dict[str, str]) -> socket.socket:
    """Starts the process that forks for scripts of the project in `root`; it ends when this one does."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, str(root / "tests" / "script_processes.py"), str(theirs.fileno())]
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], **quiet)
    theirs.close()
    return ours


@cache
def _forker() -> socket.socket:
    return start_forker(ROOT, FIRST_ENVIRONMENT)


class Forked:
    """A process that another one forked, with the methods and pipes of a Popen."""

    def __init__(
        self, forker: socket.socket, argv: list[str], cwd: Path, stderr: int, environment: dict[str, str]
    ) -> None:
        self.args, self.returncode, self.stderr = argv, None, None
        reading, writing = os.pipe()
        self.stdout, errors = open(reading, encoding="utf-8"), writing  # noqa: SIM115 it is the caller's
        if stderr == subprocess.PIPE:
            reading, errors = os.pipe()
            self.stderr = open(reading, encoding="utf-8")  # noqa: SIM115
        self._told, tell = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with tell:
            request = json.dumps([argv, str(cwd), environment]).encode()
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


def _compile_once(folder: Path) -> None:
    """Compiles the library here where Python may not write what it compiled: else each fork would do it again."""
    compiled = {}
    for path in folder.rglob("*.py"):
        compiled[str(path)] = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    plain = SourceFileLoader.get_code
    SourceFileLoader.get_code = lambda self, name: compiled.get(self.path) or plain(self, name)


def _serve(requests: socket.socket) -> list[str]:
    """Forks for each request until there are no more, and returns the script and its arguments in each fork."""
    while True:
        length, descriptors, _, _ = socket.recv_fds(requests, 4, 3)
        if not length:
            os._exit(0)
        argv, cwd, environment = json.loads(requests.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
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
            os.environ.clear(), os.environ.update(environment)
            return argv
        for descriptor in {out, err, tell}:
            os.close(descriptor)


if __name__ == "__main__":
    variables = dict(os.environ)
    import matplotlib.figure  # noqa: F401
    import torch._dynamo  # an optimizer of torch imports it, and it sets a variable  # noqa: F401

    os.environ.clear(), os.environ.update(variables)
    if sys.dont_write_bytecode:
        _compile_once(ROOT / "lit_gpt")
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    sys.argv = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
