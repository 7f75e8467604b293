"""A disk that is full or fails does not end a run, whichever file meets it, and what could not be written is said."""

import contextlib
import errno
import io
import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
from conftest import ROOT
from crash_points import NEEDS_ROOM, Fault, every, run_with, some
from crash_runs import KEEP_LAST, STEPS, WEIGHTS_OF_RUN, contents, make_place, training
from small_disk import can_mount, on_small_disk

from lit_gpt.errors import DiskError
from lit_gpt.files import write_text
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.metrics import MetricsFile

RESULTS = (WEIGHTS_OF_RUN, "merged/lit_model.pth", f"averaged/{WEIGHTS_OF_RUN}")
TRAINED = f"iter {STEPS} step {STEPS}: loss"
"""What a run says that took all its steps."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint, data, and the run `whole` that nothing interrupted."""
    place = make_place(tmp_path_factory.mktemp("disk"))
    with contextlib.redirect_stdout(io.StringIO()):
        training(place, place / "whole")()
    return place


@pytest.fixture(scope="module")
def whole(place):
    """What the run comes to."""
    return contents(place / "whole")


@pytest.fixture(scope="module")
def operations(place, tmp_path_factory):
    """File operations of the run, and the number of the last one without which there is no first checkpoint."""
    folder = tmp_path_factory.mktemp("counted")
    done = run_with(training(place, folder / "out", resume=True), folder / "out", folder / "log")
    rename = next(
        i for i, (event, path) in enumerate(done.operations, 1) if event == "os.rename" and ".step-000000." in path
        and path.count("/") == 1
    )  # fmt: skip
    return done.operations, rename


def check(place, whole, out, log, fault, first_save):
    """A run meets a fault: it takes all its steps unless it could not begin, and says what it has not written."""
    done = run_with(training(place, out, resume=True), out, log, fault)
    assert done.outcome.kind in ("read", "refused"), done.outcome.text + done.said
    assert fault.at <= first_save or TRAINED in done.said, done.said
    missed = "is not saved (" in done.said or f"the checkpoint of step {STEPS} could" in done.said
    results = RESULTS[: 3 - missed]  # the mean is that of the checkpoints that are there
    if done.outcome.kind == "read":
        found = contents(out)
        assert all(found[name] == whole[name] for name in results)
    else:
        assert "--resume true" in done.outcome.text or fault.at <= first_save, done.outcome.text
    newest = CheckpointStore(out, "lora").newest()
    assert fault.at <= first_save or newest is not None
    again = run_with(training(place, out, resume=True), out, log)
    assert again.outcome.kind == "read", again.outcome.text + again.said
    found = contents(out)
    for name in ("metrics", "best/" + WEIGHTS_OF_RUN, *results):
        assert found[name] == whole[name], name
    assert missed or found["files"] == whole["files"]
    assert len(CheckpointStore(out, "lora").steps()) == KEEP_LAST
    assert not [name for name in found["files"] if name.endswith(".tmp")]
    return done


KINDS = {
    "full at once": (errno.ENOSPC, 1),
    "full from then on": (errno.ENOSPC, None),
    "quota from then on": (errno.EDQUOT, None),
    "fails at once": (errno.EIO, 1),
    "fails from then on": (errno.EIO, None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_where_a_file_cannot_be_written(place, whole, operations, tmp_path, kind):
    (error, n), (done, first_save) = KINDS[kind], operations
    number_of = [i for i, (event, _) in enumerate(done, 1) if error == errno.EIO or event in NEEDS_ROOM]
    number_of = [i for i in every(done) if i in set(number_of)]
    counts, failures = {"read": 0, "refused": 0}, []
    for number in some(number_of, 5):
        fault, out = Fault(number, error, n and number + n), tmp_path / str(number)
        try:
            counts[check(place, whole, out, tmp_path / "log", fault, first_save).outcome.kind] += 1
        except AssertionError as e:
            failures.append(f"{kind} at {number}, {done[number - 1]}: {e}")
        shutil.rmtree(out)
    print(f"{kind}: {counts}, {len(failures)} failures")
    assert not failures, "\n".join(failures)


@pytest.mark.skipif(not can_mount(), reason="no small disk can be mounted here")
def test_a_real_disk_that_is_full_for_a_while_or_to_the_end(place, whole, operations, tmp_path):
    done, first_save = operations
    later = [number for number in every(done) if number > first_save + 12]
    for i, number in enumerate(some(later, 4)):
        until, kept, log = (None if i % 2 else number + 25), tmp_path / f"kept-{number}", tmp_path / "log"
        (tmp_path / "small").mkdir(exist_ok=True)
        said = on_small_disk(partial(training, place), tmp_path / "small", kept, log, Fault(number, until=until))
        assert said.outcome.kind in ("read", "refused"), said.outcome.text + said.said
        assert TRAINED in said.said, (number, said.said)
        again = run_with(training(place, kept, resume=True), kept, log)
        assert again.outcome.kind == "read", again.outcome.text
        found = contents(kept)
        for name in ("metrics", *RESULTS[:2]):
            assert found[name] == whole[name], (number, until, name)
        assert not [name for name in found["files"] if name.endswith(".tmp")]


def test_at_the_end_the_weights_alone_may_have_room(place, whole, operations, tmp_path):
    """The last checkpoint has none: its weights are written, and used for all that follows; the run can be resumed."""
    done, _ = operations
    number = next(i for i, (event, path) in enumerate(done, 1) if event == "os.mkdir" and f".step-{STEPS:06d}." in path)
    out = tmp_path / "out"
    done = run_with(training(place, out, resume=True), out, tmp_path / "log", Fault(number, errno.ENOSPC, number + 1))
    assert done.outcome.kind == "read", done.outcome.text + done.said
    assert f"the checkpoint of step {STEPS} could not be written (" in done.said
    assert f"that of step {STEPS - 1}: make room, and --resume true goes on from there" in done.said
    assert f"The best weights were those of step {STEPS}, which could not be saved; " in done.said
    found = contents(out)
    assert found[WEIGHTS_OF_RUN] == whole[WEIGHTS_OF_RUN] and found[RESULTS[1]] == whole[RESULTS[1]]
    assert CheckpointStore(out, "lora").steps()[-1] == STEPS - 1
    assert (out / "best").resolve().name == f"step-{STEPS - 1:06d}"


def test_weights_that_have_no_room_at_the_end_are_an_error_that_says_where_to_go_on(place, operations, tmp_path):
    done, _ = operations
    number = next(i for i, (event, path) in enumerate(done, 1) if event == "os.mkdir" and f".step-{STEPS:06d}." in path)
    out = tmp_path / "out"
    done = run_with(training(place, out, resume=True), out, tmp_path / "log", Fault(number, errno.ENOSPC))
    assert done.outcome.kind == "refused" and "No space left" in done.outcome.text
    assert f"the checkpoint of step {STEPS}, with the trained weights, could not be written" in done.outcome.text
    assert f"the newest checkpoint is that of step {STEPS - 1}: make room, and --resume true" in done.outcome.text
    assert CheckpointStore(out, "lora").newest().name == f"step-{STEPS - 1:06d}"


def test_lines_of_metrics_wait_for_room(tmp_path, monkeypatch):
    path, said = tmp_path / "metrics.csv", []
    metrics = MetricsFile(path, say=said.append)
    metrics.add({"iter": 1, "loss": 2.5})
    path.chmod(0o600)
    one = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", lambda *a, **k: open_full(*a, **k))
        metrics.add({"iter": 2, "loss": 2.25})
        metrics.add({"iter": 3, "loss": 2.0})
    assert path.read_bytes() == one and len(said) == 1 and "No space left" in said[0], said
    metrics.add({"iter": 4, "loss": 1.5})
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["iter", "1", "2", "3", "4"]
    assert len(said) == 2 and not metrics.waiting


def open_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device", str(args[0]))


@pytest.mark.parametrize("last_iter, n_rows, kept", [(2, None, 3), (2, 2, 2), (9, None, 4), (0, 0, 0)])
def test_metrics_are_cut_where_a_checkpoint_was(tmp_path, last_iter, n_rows, kept):
    """A validation after the last iteration has no number of its own; a line that was cut short is none."""
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    for row in ({"iter": 1, "loss": 2.5}, {"iter": 2, "loss": 2.0}, {"iter": 2, "val_loss": 3.0}, {"iter": 3}):
        metrics.add(row | {"step": row["iter"], "samples": 4 * row["iter"], "seconds": 1.5})
    lines = path.read_bytes().splitlines(keepends=True)
    with open(path, "ab") as file:
        file.write(b"4,2,1")
    again = MetricsFile(path, goes_on=True)
    again.cut(last_iter, n_rows)
    assert path.read_bytes() == b"".join(lines[: kept + 1]) and again.n_rows == kept


def test_metrics_of_an_earlier_version_or_damaged_ones_go_on(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(
        b"iter,step,samples,seconds,loss\r\n1,1,4,1.5,2.5\r\nx,y,4,1,z\r\n\0\0\0\xff\xff\r\n2,1,8,2.5,2.25\r\n"
    )
    metrics = MetricsFile(path, goes_on=True)
    metrics.cut(2, None)
    metrics.add({"iter": 3, "of_peak": 0.5})
    lines = [line.split(",") for line in path.read_text().splitlines()]
    assert [line[0] for line in lines] == ["iter", "1", "2", "3"] and {len(line) for line in lines} == {13}
    assert lines[1][4] == "2.5" and lines[3][11] == "0.5"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
def test_each_error_of_a_disk_is_named_with_the_file(tmp_path, monkeypatch, error):
    def refuse(*args, **kwargs):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    with pytest.raises(DiskError, match=rf"x.json could not be written \({os.strerror(error)}\); (make|check)"):
        write_text(tmp_path / "x.json", "{}")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_log_file_on_a_full_disk_ends_no_run(place, whole, tmp_path):
    """`python finetune/lora.py > log`, where each line fails."""
    flags = ["--checkpoint_dir", place / "checkpoint", "--data_dir", place / "data", "--out_dir", tmp_path / "out"]
    flags += ["--batch_size", 2, "--max_steps", STEPS, "--learning_rate", 0.05, "--precision", "32-true"]
    with open("/dev/full", "w") as full:
        p = subprocess.run(
            [sys.executable, ROOT / "finetune" / "lora.py", *map(str, flags)], stdout=full, stderr=subprocess.PIPE
        )
    assert p.returncode == 0, p.stderr
    assert (tmp_path / "out" / "report.html").is_file() and (tmp_path / "out" / "best" / WEIGHTS_OF_RUN).is_file()
