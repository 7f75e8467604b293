"""A script that is forked runs as in a process from the very beginning, and ends as that does."""

import signal
import subprocess

import pytest
import script_processes
import torch
from script_processes import FIRST_ENVIRONMENT, Forked, begin_test, can_fork, share_starts, start

from lit_gpt.fabric import make_fabric

SCRIPT = """
import atexit, os, sys
from pathlib import Path
print(__name__, __file__, sys.argv, sys.path[0], Path.cwd(), sys.stdin.read(), sorted(os.environ))
print([name for name in sys.modules if name.split('.')[0] in ('lit_gpt', 'conftest', 'script_processes', 'pytest')])
print(sys.stdout.encoding, sys.stdout.line_buffering, sys.stderr.encoding, sys.stderr.line_buffering)
print("ä of the errors", file=sys.stderr)
atexit.register(print, "at the end")
"""
ENDS = {
    "nothing": "",
    "a code": "sys.exit(3)",
    "a text": "sys.exit('no more')",
    "an error": "raise KeyError('x')",
    "a signal": "sys.stdout.flush(); os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("stderr", [subprocess.PIPE, subprocess.STDOUT])
@pytest.mark.parametrize("end", ENDS)
def test_what_is_forked_says_what_a_process_from_the_beginning_does(end, stderr, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + ENDS[end] + "\n", encoding="utf-8")
    found = []
    for _ in range(2):
        process = start(script, "--a", "b c", cwd=tmp_path, stderr=stderr)
        found.append((process.communicate(timeout=60), process.returncode))
    assert isinstance(process, Forked) == can_fork()
    of_ours = ("runpy", "script_processes.py")  # lines of a traceback that are above the script
    texts = [[(said or "").splitlines() for said in both] for both, _ in found]
    texts[1] = [[line for line in lines if not any(name in line for name in of_ours)] for lines in texts[1]]
    assert found[0][1] == found[1][1] and texts[0] == texts[1]


def test_a_signal_reaches_it_and_what_is_read_at_the_start_is_not_forked(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    for env in (None, None, {"OMP_NUM_THREADS": "77"}):
        process = start(script, cwd=tmp_path, env=env)
        assert process.stdout.readline() == "here\n" and process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == process.poll() == -signal.SIGTERM
        assert process.communicate() == ("", None)
    assert isinstance(process, subprocess.Popen)


def test_a_fork_has_the_environment_of_its_test(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nprint(sorted(os.environ.items()))\n")
    monkeypatch.setenv("LIT_GPT_OF_THIS_TEST", "1")
    monkeypatch.delenv("PATH")
    said = []
    for _ in range(2):
        process = start(script, cwd=tmp_path, env={"HF_HOME": str(tmp_path)})
        said.append(process.communicate()[0])
    assert isinstance(process, Forked) == can_fork() and said[0] == said[1]
    assert "('LIT_GPT_OF_THIS_TEST', '1')" in said[1] and str(tmp_path) in said[1] and "'PATH'" not in said[1]
    assert FIRST_ENVIRONMENT["PATH"]


@pytest.mark.skipif(not can_fork(), reason="no process is forked here")
def test_what_training_sets_in_this_process_is_nothing_to_a_script(tmp_path):
    """Torch and Lightning set variables, some of which a process reads when it starts: nothing would be forked then."""
    make_fabric("32-true", seed=1)
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    script = tmp_path / "script.py"
    script.write_text("import os\nprint(sorted(os.environ))\n")
    processes = [start(script, cwd=tmp_path) for _ in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert isinstance(processes[1], Forked) and said[0] == said[1]


@pytest.mark.skipif(not can_fork(), reason="no process is forked here")
def test_what_a_library_left_in_the_environment_is_nothing_to_a_script(tmp_path, monkeypatch):
    monkeypatch.setattr(script_processes, "_left", {})
    monkeypatch.setenv("KMP_OF_A_LIBRARY", "1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "0")
    monkeypatch.delenv("HOME")
    script = tmp_path / "script.py"
    script.write_text("import os\nprint(sorted(os.environ.items()))\n")

    def starts():
        process = start(script, cwd=tmp_path)
        return process.communicate()[0], isinstance(process, Forked)

    (meant, _), (_, is_forked) = starts(), starts()
    assert not is_forked and "KMP_OF_A_LIBRARY" in meant and "'HOME'" not in meant
    begin_test()  # from here on, another one might have set all that
    left, is_forked = starts()
    assert is_forked and "KMP_OF_A_LIBRARY" not in left and "'HOME'" in left
    monkeypatch.setenv("KMP_OF_A_LIBRARY", "2")
    meant, is_forked = starts()
    assert not is_forked and "('KMP_OF_A_LIBRARY', '2')" in meant


@pytest.mark.skipif(not can_fork(), reason="no process is forked here")
def test_a_script_that_another_worker_has_started_is_forked_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(script_processes, "_started_by_all", [])
    script = tmp_path / "script.py"
    script.write_text("print('here')\n")
    share_starts(tmp_path / "started")
    kinds = []
    for _ in range(2):
        monkeypatch.setattr(script_processes, "_started", set())  # as each worker begins
        process = start(script, cwd=tmp_path)
        assert process.communicate()[0] == "here\n"
        kinds.append(isinstance(process, Forked))
    assert kinds == [False, True]
