"""The campaign of benchmarks/robustness.py can fail: it counts, names and kills what a damaged file does; and it finds
nothing in the readers of files from outside."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from damage import FUZZ_SECONDS, FUZZ_SEED, PATIENCE

from lit_gpt.errors import UserError

sys.path.append(str(ROOT / "benchmarks"))
from robustness_parts.campaign import Case, Limits, Section, as_json, lines_of, run, run_case, summed
from robustness_parts.kills import difference

FUZZED = ("config", "index", "safetensors", "gguf", "tokenizer_json", "lit_config", "finetuned", "rows")


def raising():
    return {}["planted"]


def refusing():
    raise UserError("refused, as it should be")


def long_winded():
    raise OSError("a word " * 500)  # a UserError shortens itself


def spinning():
    while True:
        pass


def crashing():
    os.kill(os.getpid(), signal.SIGSEGV)


def greedy():
    return bytearray(8 * 10**9)


def starts_what_hangs():
    subprocess.Popen(["sleep", "1000"])


def section_of(*reads):
    """A section whose cases have these readers in turn."""
    return Section("planted", lambda random, place: Case(reads[int(random.random() * len(reads))]))


@pytest.mark.parametrize(
    "read, kind, place",
    [
        (raising, "exception", "KeyError"),
        (long_winded, "message", "a word a word"),
        (spinning, "hang", ""),
        (lambda: time.sleep(1_000), "hang", ""),
        (crashing, "crash", ""),
        (greedy, "memory", "MemoryError"),
        (refusing, "refused", ""),
        (lambda: None, "read", ""),
        (starts_what_hangs, "read", ""),
    ],
)
def test_each_kind_of_outcome_is_recognized_and_a_hang_is_killed(tmp_path, read, kind, place):
    started = time.monotonic()
    counts = run(section_of(read), tmp_path, 0, Limits(n_cases=1, patience=0.15))
    assert time.monotonic() - started < 60
    assert counts.kinds == {kind: 1} and counts.n_faults == (kind not in ("read", "refused"))
    assert [fault.place.startswith(place) for fault in counts.faults.values()] == [True] * counts.n_faults


def test_what_is_written_outside_or_left_half_written_is_a_fault(tmp_path):
    def case_of(name):
        def make(random, place):
            return Case(lambda: (place / name).write_text("x"))

        return Section("planted", make)

    kinds = [run_case(case_of(name), tmp_path, 0, number=0).kind for name in ("../../ran", ".a.1.tmp", "a")]
    assert kinds == ["outside", "leftover", "read"]


def test_a_fault_is_shown_once_with_a_case_that_can_be_repeated(tmp_path):
    section = section_of(raising, refusing, lambda: None)
    counts = run(section, tmp_path, 5, Limits(n_cases=20))
    assert counts.kinds.keys() == {"exception", "refused", "read"} and sum(counts.kinds.values()) == 20
    (fault,) = counts.faults.values()
    assert len(fault.cases) == counts.n_faults == counts.kinds["exception"] > 1
    text = "\n".join(lines_of([counts]))
    assert f"--case planted:{fault.cases[0]}, {len(fault.cases)} cases: exception: " in text
    assert "KeyError: 'planted'" in text and f"20 cases, {counts.n_faults} faults" in text
    both = summed(as_json([counts]) + json.loads(json.dumps(as_json([counts]))))
    assert len(both) == 1 and both[0].n == 40 and both[0].kinds == {kind: 2 * n for kind, n in counts.kinds.items()}
    assert both[0].n_faults == 2 * counts.n_faults and both[0].seconds == 2 * counts.seconds
    assert (both[0].slowest, both[0].largest) == (counts.slowest, counts.largest)
    for number in range(20):
        again = run_case(section, tmp_path, 5, number=number)
        assert (again.kind == "exception") == (number in fault.cases)


@pytest.mark.parametrize("harm", ["nothing", "weights", "metrics", "checkpoints", "best", "page"])
def test_a_run_that_went_on_otherwise_is_told_from_one_that_did_not(tmp_path, harm):
    for out in (tmp_path / "whole", tmp_path / "out"):
        harmed = harm if out.name == "out" else "nothing"
        for step in (2, 4):
            (out / "checkpoints" / f"step-{step}").mkdir(parents=True)
        weights = {"a": torch.tensor([1.0, 2.0 + (harmed == "weights") * 2**-22])}
        torch.save(weights, out / f"{out.name}.pth")  # the name of the file is in it
        (out / f"{out.name}.pth").rename(out / "lit_model_finetuned.pth")
        loss = 1.5 + (harmed == "metrics") * 1e-7
        (out / "metrics.csv").write_text(f"step,loss,seconds\n1,{loss},{time.monotonic()}\n")
        os.symlink("checkpoints/step-2" if harmed == "best" else "checkpoints/step-4", out / "best")
        if harmed == "checkpoints":
            (out / "checkpoints" / "step-2").rename(out / "checkpoints" / "step-3")
        if harmed != "page":
            (out / "report.html").touch()
    found = difference(tmp_path / "whole", tmp_path / "out")
    assert (found is None) == (harm == "nothing"), found


@pytest.mark.parametrize("sections", [FUZZED[::2], FUZZED[1::2]], ids=",".join)
def test_some_seconds_of_damaged_files_are_read_or_refused(tmp_path, sections):
    flags = ["--folder", tmp_path, "--sections", ",".join(sections), "--seconds", FUZZ_SECONDS, "--patience", PATIENCE]
    command = [sys.executable, ROOT / "benchmarks" / "robustness.py", *flags, "--seed", FUZZ_SEED]
    p = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert p.returncode == 0, p.stdout + p.stderr
    found = json.loads((tmp_path / "robustness.json").read_text())
    assert [counts["section"] for counts in found] == list(sections)
    for counts in found:
        assert counts["cases"] >= 10 and {"read", "refused"} >= counts["kinds"].keys() and counts["kinds"]["refused"]
