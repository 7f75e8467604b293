"""Of two processes that would write the same folder, one does; the other says in one line which has it."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from conftest import ROOT, assert_one_line_error, tiny_hf, write_tokenizer
from script_processes import run, start

from lit_gpt.errors import UserError
from lit_gpt.files import only_writer, writers
from lit_gpt.files.checksums import contents_of

HOLD = """
import sys
from pathlib import Path
from lit_gpt.errors import UserError
from lit_gpt.files import only_writer

sys.stdin.readline()  # all begin together
try:
    with only_writer(Path(sys.argv[1])):
        print("has it", flush=True)
        sys.stdin.readline()
except UserError as e:
    print(e, flush=True)
"""


FORKS = HOLD.replace(
    "        print(",
    """        import os
        if not os.fork():
            sys.stdin.readline()  # until its end: longer than the parent lives
            os._exit(0)
        print(""",
)


def started(folder, *words, program=HOLD):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", program, str(folder), *words], cwd=ROOT, **pipes)


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def ended(process):
    process.communicate("\n" if process.poll() is None else None, timeout=60)


def test_of_processes_that_race_one_wins_and_the_others_name_it(tmp_path):
    folder = tmp_path / "out" / "lora" / "x"
    processes = [started(folder, f"--number {i}", "two\nlines") for i in range(4)]
    for process in processes:
        go(process)
    said = {process.pid: process.stdout.readline().strip() for process in processes}
    (winner,) = [pid for pid, line in said.items() if line == "has it"]
    for pid, line in said.items():
        assert pid == winner or f"in use: process {winner} on {os.uname().nodename}" in line, line
        assert pid == winner or f"--number {[p.pid for p in processes].index(winner)}" in line, line
    with pytest.raises(UserError, match=f"process {winner} on"), only_writer(folder):
        pass
    for process in processes:
        ended(process)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", [HOLD, FORKS], ids=["alone", "with a child that lives on"])
def test_a_killed_process_locks_nothing(tmp_path, program):
    process = started(tmp_path / "x", program=program)
    go(process)
    assert process.stdout.readline() == "has it\n"
    process.kill()
    process.wait()
    assert (tmp_path / ".x.lock").is_file()  # what is left of it
    with only_writer(tmp_path / "x"):
        pass
    process.communicate()  # ends the child
    assert not list(tmp_path.iterdir())


def test_a_link_is_the_folder_that_it_points_to_and_a_file_of_anything_may_be_there(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("x")
    random = Random(0)
    for content in (b"", b"[" * 100_000, b'{"pid": {}}', b'{"pid": 1, "host": "a\\nb", "since": 2}', b"null"):
        (tmp_path / ".x.lock").write_bytes(content + random.randbytes(20))
        with only_writer(tmp_path / "x"):
            (tmp_path / ".x.lock").write_bytes(content)  # as another version or system may sign it
            with (
                pytest.raises(UserError, match=r"is in use: .*; wait for it or end it") as e,
                only_writer(tmp_path / "link"),
            ):
                pass
            assert len(str(e.value)) < 1_000 and "\n" not in str(e.value)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_filesystem_without_locks_is_noted(tmp_path, number, monkeypatch, capsys):
    def no_locks(descriptor, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writers.fcntl, "flock", no_locks)
    with only_writer(tmp_path / "x"):
        pass
    assert capsys.readouterr().err.count("has no locks") == 1 and not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").is_dir(), reason="nothing here cannot be written")
def test_a_folder_that_cannot_be_written_is_one_line():
    with pytest.raises(UserError, match="cannot be written"), only_writer(Path("/proc/self/x/y")):
        pass


FLAGS = ["--checkpoint_dir", "checkpoint", "--data_dir", "data", "--batch_size", "4", "--micro_batch_tokens", "48"]
PREPARE = ["scripts/prepare_alpaca.py", "--checkpoint_dir", "checkpoint", "--data_file", "rows.json"]
PREPARE += ["--prompt_style", "plain", "--destination_path", "data"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint and prepared data."""
    place = tmp_path_factory.mktemp("writers")
    tiny_hf("llama-gqa").save_pretrained(place / "checkpoint")
    write_tokenizer(place / "checkpoint")
    rows = [{"instruction": f"say {w} {n} times", "input": "", "output": f"{w} " * n} for w in "abcd" for n in range(9)]
    (place / "rows.json").write_text(json.dumps(rows))
    for command in (["scripts/convert_hf_checkpoint.py", "--checkpoint_dir", "checkpoint"], PREPARE):
        p = run(*command, cwd=place)
        assert p.returncode == 0, p.stderr
    return place


def test_of_two_runs_in_one_folder_one_trains_as_if_alone(place):
    command = ["finetune/lora.py", *FLAGS, "--epochs", "2", "--precision", "32-true"]
    alone = run(*command, "--out_dir", "alone", cwd=place)
    assert alone.returncode == 0, alone.stderr
    both = [start(*command, "--out_dir", "both", cwd=place, stderr=subprocess.PIPE) for _ in range(2)]
    ends = [(*process.communicate(timeout=300), process.returncode) for process in both]
    won, lost = sorted(ends, key=lambda end: end[2])
    assert (won[2], lost[2]) == (0, 1), ends
    assert lost[1].startswith("error: ") and lost[1].count("\n") == 1, lost[1]
    assert "is in use: process" in lost[1] or "holds another run" in lost[1], lost[1]
    names = {path.name for path in (place / "alone").iterdir()}
    assert {path.name for path in (place / "both").iterdir()} == names
    name = "lit_model_lora_finetuned.pth"
    assert contents_of(place / "both" / name) == contents_of(place / "alone" / name)
    assert not list(place.glob(".*"))


REPLACES = ["--checkpoint_dir", "checkpoint", "--overwrite", "true"]
ADAPTER = ["scripts/convert_peft_adapter.py", "--to", "peft", "--finetuned_path", "alone"]
WRITES = {  # flags with which a script writes to the folder `there`
    "a run": ["finetune/lora.py", *FLAGS, "--out_dir", "there", "--overwrite", "true"],
    "data": [*PREPARE[:-1], "there", "--overwrite", "true"],
    "a mixture": ["scripts/prepare_mix.py", "--sources", "{a: data}", "--destination_path", "there"],
    "a conversion": ["scripts/convert_hf_checkpoint.py", "--checkpoint_dir", "there"],
    "an export": ["scripts/convert_lit_checkpoint.py", "--output_dir", "there", *REPLACES],
    "a merge": ["scripts/merge_lora.py", "--finetuned_path", "alone", "--out_dir", "there", *REPLACES],
    "an adapter": [*ADAPTER, *REPLACES, "--peft_dir", "there"],
}


@pytest.mark.parametrize("what", WRITES)
def test_whatever_writes_a_folder_leaves_it_to_the_process_that_has_it(place, what):
    if not (place / "alone").exists():
        p = run("finetune/lora.py", *FLAGS, "--epochs", "1", "--out_dir", "alone", cwd=place)
        assert p.returncode == 0, p.stderr
    if not (place / "there").exists():
        tiny_hf("llama-gqa").save_pretrained(place / "there")
    before = {path.name: path.read_bytes() for path in (place / "there").iterdir()}
    with only_writer(place / "there"):
        p = run(*WRITES[what], cwd=place)
        assert_one_line_error(p, "there is in use: process", str(os.getpid()))
    assert {path.name: path.read_bytes() for path in (place / "there").iterdir()} == before
    if what == "a run":
        with only_writer(place / "there"):
            p = run(*WRITES[what], "--dry_run", "true", cwd=place)
            assert p.returncode == 0, p.stderr
