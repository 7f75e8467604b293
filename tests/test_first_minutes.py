"""What a machine, a clone or a signal may do to a script that starts, and what is said of it."""

import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from lit_gpt import __version__
from lit_gpt.checkpoints.runs import Run
from lit_gpt.errors import UserError
from lit_gpt.training.run.resume import require_same


def test_a_signal_that_comes_while_a_line_is_written_is_noted_all_the_same(monkeypatch, capfd):
    from lit_gpt.training.run.stopping import stop_signals

    class Pipe(io.RawIOBase):
        """Where the signal comes in the middle of a write."""

        sent = False

        def writable(self):
            return True

        def write(self, block):
            if not self.sent:
                self.sent = True
                os.kill(os.getpid(), signal.SIGTERM)
            return len(block)

    with stop_signals() as stop:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Pipe()), write_through=True))
        print("step 1: loss 2.0", flush=True)
        monkeypatch.undo()
    assert stop.signal == "SIGTERM"
    assert "SIGTERM: stopping after this micro-batch" in capfd.readouterr().out


WITHOUT_UNIX = """
import importlib, os, pkgutil, signal, sys, time
import torch, lightning.fabric, huggingface_hub, tokenizers, requests  # others' modules may take what there is
for name in ("resource", "fcntl", "termios", "pwd", "grp", "pty"):
    sys.modules[name] = None
for name in ("sysconf", "fork", "posix_fallocate", "posix_fadvise", "getuid", "sched_getaffinity", "uname", "mkfifo"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGKILL", "alarm", "setitimer", "pthread_kill"):
    delattr(signal, name)
for name in ("clock_gettime", "CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):
    delattr(time, name)
opened = open
def no_proc(path, *args, **kwargs):
    if str(path).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return opened(path, *args, **kwargs)
import builtins
builtins.open = no_proc
import lit_gpt
for module in pkgutil.walk_packages(lit_gpt.__path__, "lit_gpt."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as e:  # of CUDA's kernels
        assert e.name == "triton", e
"""


def test_every_module_is_imported_and_a_machine_is_measured_without_what_only_unix_has(tmp_path):
    code = (
        WITHOUT_UNIX
        + """
import ctypes
from types import SimpleNamespace
from lit_gpt import resources
class Kernel:  # of Windows, whose functions fill what they are given
    class Pseudo:
        def __call__(self): return -1
    GetCurrentProcess = Pseudo()
    def K32GetProcessMemoryInfo(self, process, counters, size):
        assert size == 8 + 8 * 8 and process.value == 2**64 - 1, (size, process)
        counters._obj.peak_working_set = 3 * 10**9
        return 1
    def GlobalMemoryStatusEx(self, status):
        assert status._obj.length == 64
        status._obj.total = 32 * 10**9
        return 1
ctypes.windll = SimpleNamespace(kernel32=Kernel())
assert resources.peak_memory_gb() == 3.0 and resources.total_memory() == 32 * 10**9
from lit_gpt.training.run.budget import process_seconds
from lit_gpt.planning.memory_items import resident_bytes
from lit_gpt.planning.devices import named
assert 0 < process_seconds() < 1000 and resident_bytes() > 0 and 29 < named("cpu").gib < 30
from pathlib import Path
from lit_gpt.files import write_text
write_text(Path("x.txt"), "whole")
from lit_gpt.foreign import Limits, RaisedError, Remote
text = Remote("a text", "builtins:str", "ab", limits=Limits(1, 1 << 20))  # in this process
assert text.call("upper", limits=Limits(1, 1 << 20), doing="") == "AB"
try:
    text.call("index", "c", limits=Limits(1, 1 << 20), doing="")
except RaisedError as e:
    assert "not found" in str(e)
else:
    raise AssertionError
"""
    )
    process = python(code, tmp_path)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "x.txt").read_text() == "whole"


def python(code, folder, **env):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=env, timeout=300
    )


def test_a_folder_goes_by_a_second_name_also_where_there_are_no_links(tmp_path, monkeypatch):
    from lit_gpt.files import links, remove

    def none(*args, **kwargs):
        raise OSError(1314, "A required privilege is not held by the client")

    for first in ("linked", "copied"):
        out = tmp_path / first
        for step in (1, 2):
            (out / f"checkpoints/step-{step}").mkdir(parents=True)
            (out / f"checkpoints/step-{step}/weights").write_text(str(step))
        if first == "copied":
            monkeypatch.setattr(Path, "symlink_to", none)
        for step in (1, 2, 2):
            links.point(out / "best", out / f"checkpoints/step-{step}")
            assert (out / "best/weights").read_text() == str(step) and (out / "best").is_symlink() is (
                first == "linked"
            )
        assert {p.name for p in out.iterdir()} == {"best", "checkpoints"}
        remove(out / "best")
        assert not (out / "best").exists() and (out / "checkpoints/step-2/weights").is_file()
        remove(out / "best")


def clone(folder, name):
    """Another clone: the library as it is, but for an error that says where it stands, and a script that raises it."""
    place = folder / name
    shutil.copytree(ROOT / "lit_gpt", place / "lit_gpt", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "lit_gpt/only_here.py").write_text(f"NAME = {name!r}\n")
    (place / "scripts").mkdir()
    (place / "scripts/say.py").write_text(
        "import lit_gpt.errors\nfrom lit_gpt.only_here import NAME\n\n\n"
        "def main(value: int = 1) -> None:\n"
        "    print(NAME, value, lit_gpt.__file__, lit_gpt.errors.__file__)\n\n\n"
        "if __name__ == '__main__':\n    from lit_gpt.cli import run\n\n    run(main)\n"
    )
    return place


def test_a_second_clone_runs_its_own_library_and_says_so(tmp_path):
    a, b = clone(tmp_path, "a"), clone(tmp_path, "b")
    env = {**os.environ, "PYTHONPATH": str(a)}  # as the installed one is found
    said = {}
    for place in (a, b):
        command = [sys.executable, str(place / "scripts/say.py"), "--value", "2"]
        said[place] = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60)
        assert said[place].stdout.split() == [
            place.name,
            "2",
            str(place / "lit_gpt/__init__.py"),
            str(place / "lit_gpt/errors.py"),
        ], said[place].stderr
    assert said[a].stderr == ""
    assert said[b].stderr.count("\n") == 1 and said[b].stderr.startswith("note: ")
    assert f"{b / 'lit_gpt'}, and not the installed one, {a / 'lit_gpt'};" in said[b].stderr
    shutil.copy(b / "scripts/say.py", tmp_path / "mine.py")  # a script that stands alone takes the installed one
    command = [sys.executable, str(tmp_path / "mine.py")]
    alone = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60)
    assert alone.stdout.split()[0] == "a" and alone.stderr == ""


RAISES = """
import sys
sys.argv = ["x.py"]
from pathlib import Path
from lit_gpt.cli import run
from lit_gpt.errors import UserError

def main() -> None:
    {}

run(main)
"""


@pytest.mark.parametrize(
    "statement, code, line",
    [
        ("raise UserError('--x is wrong; leave it out')", 1, "error: --x is wrong; leave it out"),
        ("open('gone/file.txt')", 1, "No such file or directory: gone/file.txt (LIT_GPT_TRACEBACK=1 shows"),
        ("raise ModuleNotFoundError(name='triton')", 1, "error: torch has no Triton here"),
        ("raise MemoryError", 1, "this machine has too little memory"),
        ("raise KeyboardInterrupt", 130, "error: interrupted"),
    ],
)
def test_where_an_error_comes_from_is_shown_to_who_asks(statement, code, line, tmp_path):
    quiet = python(RAISES.format(statement), tmp_path, LIT_GPT_TRACEBACK="0")
    assert quiet.returncode == code and quiet.stderr.count("\n") == 1 and line in quiet.stderr
    loud = python(RAISES.format(statement), tmp_path, LIT_GPT_TRACEBACK="1")
    assert loud.returncode == code and loud.stderr.startswith("Traceback") and "in main" in loud.stderr
    assert loud.stderr.endswith(quiet.stderr)


@pytest.mark.parametrize("statement", ["1 / 0", "raise OSError('no name, no reason')", "{}['x']", "raise RuntimeError"])
def test_a_bug_of_ours_keeps_its_traceback(statement, tmp_path):
    process = python(RAISES.format(statement), tmp_path)
    assert process.returncode == 1 and process.stderr.startswith("Traceback") and "error: " not in process.stderr
    if sys.version_info >= (3, 11):
        assert process.stderr.splitlines()[-1].startswith(f"This is a bug of lit-gpt {__version__} and not your")


def test_a_character_that_the_terminal_lacks_does_not_end_a_program(tmp_path):
    process = python(RAISES.format("print('a \\u2192 b \\udcff')"), tmp_path, PYTHONIOENCODING="ascii")
    assert process.returncode == 0 and process.stdout.strip() == "a \\u2192 b \\udcff", process.stderr


def test_a_name_of_any_length_is_one_line(tmp_path):
    process = python(RAISES.format("open('x' * 100_000)"), tmp_path)
    assert process.returncode == 1 and process.stderr.count("\n") == 1 and len(process.stderr) < 1_100


def test_a_demo_whose_finetuning_was_interrupted_goes_on(tmp_path, monkeypatch):
    demo = SimpleNamespace(**runpy.run_path(str(ROOT / "demo" / "run.py")))
    asked = {}
    names = demo.main.__globals__
    names |= {"fetch_model": lambda: None, "score": lambda path: 0.5}
    names["command"] = lambda script, **flags: asked.update({script: flags})
    monkeypatch.chdir(tmp_path)
    demo.main()
    assert "resume" not in asked["finetune/lora.py"]
    (demo.OUT / "checkpoints").mkdir(parents=True)
    demo.main()
    assert asked["finetune/lora.py"]["resume"] is True


def test_a_mac_computes_on_its_cpu(monkeypatch):
    from lightning.fabric.accelerators import MPSAccelerator

    from lit_gpt.fabric import make_fabric

    if torch.cuda.is_available():
        pytest.skip("this is no Mac")
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    assert make_fabric().device.type == "cpu"


@pytest.mark.parametrize("allow_changes", [False, True])
@pytest.mark.parametrize(
    "change, offered",
    [
        ({"method_args": {"lora_r": 16, "lora_alpha": 16}}, False),
        ({"method": "adapter"}, False),
        ({"training": {"optimizer": "adamw8bit", "batch_size": 128}}, False),
        ({"training": {"optimizer": "adamw", "batch_size": 64}}, True),
        ({"method_args": {"lora_r": 8, "lora_alpha": 32}}, True),
    ],
)
def test_resuming_with_other_arguments_offers_only_what_can_work(change, offered, allow_changes, capsys):
    before = Run(
        method="lora",
        method_args={"lora_r": 8, "lora_alpha": 16},
        prompt_style="plain",
        base="x",
        base_digest="0",
        data={},
        training={"optimizer": "adamw", "batch_size": 128},
        versions={},
    )
    if offered and allow_changes:
        require_same(replace(before, **change), before, allow_changes)
        assert "Changed: " in capsys.readouterr().out
        return
    with pytest.raises(UserError, match="this would be another run: ") as caught:
        require_same(replace(before, **change), before, allow_changes)
    assert ("--allow_changes true goes on" in str(caught.value)) is offered
    assert ("or start a new run with another --out_dir" in str(caught.value)) is not offered


def test_a_run_is_resumed_where_its_files_were_moved_to():
    def data(place, contents="a", rows=3):
        mix = {"sources": {"one": {"path": f"{place}/one", "source": f"{place}/1.json", "rows": rows}}}
        paths = {"source": f"{place}/x.json", "validation_source": f"{place}/y.json", "folder": f"{place}/data"}
        return {**paths, "mix": mix, "contents": {"train": contents}}

    before = Run("lora", {}, "plain", base="x", base_digest="0", data=data("/a"), training={}, versions={})
    require_same(replace(before, data=data("/b")), before, allow_changes=False)
    for other, said in ((data("/b", contents="b"), "tokens or labels of train"), (data("/b", rows=4), "data mix was")):
        with pytest.raises(UserError, match=said):
            require_same(replace(before, data=other), before, allow_changes=False)
