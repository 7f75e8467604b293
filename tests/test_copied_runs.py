"""A run that was copied, moved or unpacked is the same run; one whose checkpoints are all damaged says what is left."""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import zipfile
from random import Random

import pytest
from conftest import ROOT
from crash_points import Fault, every, run_with, some
from crash_runs import STEPS, WEIGHTS_OF_RUN, contents, make_place, training
from damage import flipped

from lit_gpt.args import AskArgs, SamplingArgs
from lit_gpt.errors import UserError
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.resume import checkpoint_to_resume


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint, data, the run `whole`, and the run `half` that was killed before its last step."""
    place = make_place(tmp_path_factory.mktemp("copied"))
    with contextlib.redirect_stdout(io.StringIO()):
        training(place, place / "whole")()
    half = place / "half"
    done = run_with(training(place, place / "counted"), place / "counted", place / "log")
    number = next(i for i, (_, path) in enumerate(done.operations, 1) if f".step-{STEPS:06d}." in path)
    assert run_with(training(place, half), half, place / "log", Fault(number)).was_killed
    return place


def copied_following_links(half, copy):
    subprocess.run(["cp", "-rL", half, copy], check=True)


def copied_without_links(half, copy):
    """As rsync -r does, which skips them."""
    shutil.copytree(half, copy, ignore=lambda folder, names: [n for n in names if os.path.islink(f"{folder}/{n}")])


def zipped(half, copy):
    """With the time of unpacking for each file, and a folder for each link."""
    packed = copy.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w") as archive:
        for folder, _, names in os.walk(half, followlinks=True):
            for name in names:
                path = os.path.join(folder, name)
                archive.write(path, os.path.relpath(path, half))
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(copy)


def linked_by_a_text_file(half, copy):
    """As a link is unpacked on some systems."""
    copied_without_links(half, copy)
    (copy / "best").write_text(os.readlink(half / "best"))


def moved(half, copy):
    shutil.copytree(half, copy.with_name("first"), symlinks=True)
    copy.with_name("first").rename(copy)


WAYS = (copied_following_links, copied_without_links, zipped, linked_by_a_text_file, moved)


def used_bytes(folder):
    """What the files take on the disk, each once, however many names it has."""
    return sum({p.stat().st_ino: p.stat().st_size for p in folder.rglob("*") if p.is_file()}.values())


def script(path):
    """The main function of a script, in this process."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_run_goes_on_and_is_used(place, tmp_path, way):
    copy, log = tmp_path / "copy", tmp_path / "log"
    way(place / "half", copy)
    merged, generated, best = tmp_path / "merged", tmp_path / "said", copy / "best"

    def use() -> None:
        for run_dir in (copy, best) if best.is_dir() else (copy,):
            with open(generated, "w") as file, contextlib.redirect_stdout(file):
                script("generate/lora.py")(
                    place / "checkpoint", run_dir, asking=AskArgs("x"), sampling=SamplingArgs(max_new_tokens=2)
                )
            script("scripts/merge_lora.py")(place / "checkpoint", run_dir, merged, overwrite=True)

    for times in (1, 2):
        done = run_with(use, copy, log)
        assert done.outcome.kind == "read", done.outcome.text + done.said
        if times == 1:
            done = run_with(training(place, copy, resume=True), copy, log)
            assert done.outcome.kind == "read" and f"Going on from {copy}" in done.said, done.outcome.text
    assert contents(copy) == contents(place / "whole")
    assert best.is_symlink() and used_bytes(copy) < 1.05 * used_bytes(place / "whole")


def test_best_is_taken_for_the_checkpoint_that_it_is_a_link_to_or_a_copy_of(place, tmp_path, capsys):
    for way in (copied_following_links, moved):
        copy = tmp_path / way.__name__
        way(place / "half", copy)
        store = CheckpointStore(copy, "lora")
        assert checkpoint_to_resume(store, copy / "best").resolve() == store.folder_of(STEPS - 1)
    other = tmp_path / "other"
    copied_following_links(place / "half", other)
    with pytest.raises(UserError, match="is not a checkpoint of --out_dir"):
        checkpoint_to_resume(store, other / "best")


def without_links(run):
    """A filesystem that has no links, or a system that does not let one make them."""

    def refuse(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    def run_so() -> None:
        os.symlink = os.link = refuse
        run()

    return run_so


def test_without_links_a_run_is_stopped_and_goes_on_and_takes_no_more_room(place, tmp_path):
    log = tmp_path / "log"

    def whole(out):
        return run_with(without_links(training(place, out, resume=True)), out, log)

    done = whole(tmp_path / "whole")
    assert done.outcome.kind == "read", done.outcome.text
    reference = contents(tmp_path / "whole")
    assert (tmp_path / "whole" / "best").is_dir() and not (tmp_path / "whole" / "best").is_symlink()
    about_best = [i for i in every(done.operations) if "best" in done.operations[i - 1][1]]
    assert len(about_best) > 20
    for number in some(about_best, 5):
        out = tmp_path / str(number)
        assert run_with(without_links(training(place, out, resume=True)), out, log, Fault(number)).was_killed
        for _ in range(2):
            assert whole(out).outcome.kind == "read"
            assert contents(out) == reference, (number, done.operations[number - 1])


HARMS = {
    "truncated": lambda folder: (folder / "state.pth").write_bytes((folder / "state.pth").read_bytes()[:-9]),
    "no record": lambda folder: (folder / "state.json").unlink(),
    "another record": lambda folder: (folder / "state.json").write_text("{}"),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("harm", HARMS)
def test_where_all_checkpoints_are_damaged_it_is_said_what_is_left_to_do(place, tmp_path, harm):
    out, log = tmp_path / "out", tmp_path / "log"
    copied_following_links(place / "half", out)
    store = CheckpointStore(out, "lora")
    for step in store.steps():
        HARMS[harm](store.folder_of(step))
    before = contents_of_folder(out)
    done = run_with(training(place, out, resume=True), out, log)
    text = done.outcome.text
    assert done.outcome.kind == "refused" and "--resume true" not in text, done
    assert all(store.folder_of(step).name in text for step in store.steps()) and str(store.folder) in text
    assert "from a backup, or pass --overwrite true to train anew" in text
    assert contents_of_folder(out) == before
    shutil.copytree(out, tmp_path / "anew")
    done = run_with(training(place, tmp_path / "anew", overwrite=True), tmp_path / "anew", log)
    assert done.outcome.kind == "read" and contents(tmp_path / "anew") == contents(place / "whole")
    newest = store.steps()[-1]
    shutil.rmtree(store.folder_of(newest))
    shutil.copytree(place / "half" / "checkpoints" / f"step-{newest:06d}", store.folder_of(newest))
    done = run_with(training(place, out, resume=True), out, log)
    assert done.outcome.kind == "read" and contents(out)["metrics"] == contents(place / "whole")["metrics"]


def contents_of_folder(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_results_without_checkpoints_are_no_reason_to_resume(place, tmp_path):
    shutil.copytree(place / "whole", tmp_path / "out", ignore=shutil.ignore_patterns("checkpoints", "best"))
    done = run_with(training(place, tmp_path / "out", resume=True), tmp_path / "out", tmp_path / "log")
    text = done.outcome.text
    assert done.outcome.kind == "refused" and "--resume true" not in text and "--overwrite true" in text, done
    assert f"has {WEIGHTS_OF_RUN} and no checkpoint to resume from" in text


def test_a_damaged_checkpoint_that_is_named_says_how_to_take_another(place, tmp_path):
    out = tmp_path / "out"
    copied_following_links(place / "half", out)
    store = CheckpointStore(out, "lora")
    folder = store.folder_of(store.steps()[-1])
    HARMS["truncated"](folder)
    with pytest.raises(UserError, match=r"state.pth is not what was written\); --resume true takes the newest one"):
        checkpoint_to_resume(store, folder)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_damaged_a_whole_checkpoint_is_found_or_one_line_says_what_to_do(place, tmp_path, seed, capsys):
    """Bits, ends and whole files of the checkpoints; what is found has what was written."""
    random, found = Random(seed), 0
    whole = contents_of_folder(place / "half" / "checkpoints")
    for number in range(60):
        out = tmp_path / str(number)
        shutil.copytree(place / "half", out, symlinks=True)
        for path in sorted((out / "checkpoints").rglob("*")):
            if path.is_file() and random.random() < 0.3:
                content = flipped(path.read_bytes(), random) if random.random() < 0.8 else None
                path.unlink()
                if content is not None:
                    path.write_bytes(content)
        try:
            checkpoint = checkpoint_to_resume(CheckpointStore(out, "lora"), True)
        except UserError as e:
            text = str(e).replace(str(out), "OUT")
            assert "--resume true" not in text and "--overwrite true" in text and len(text) < 600, text
            assert "\n" not in text and text.count("OUT") == 2  # the run, and where a copy belongs
            continue
        found += 1
        step = {f"{checkpoint.name}/{name}": content for name, content in contents_of_folder(checkpoint).items()}
        assert step == {name: content for name, content in whole.items() if name.startswith(checkpoint.name)}
    assert 5 < found < 55
    assert not re.search(r"Traceback", capsys.readouterr().out)
