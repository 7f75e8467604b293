"""Files of tensors stream, are read back bit for bit, and are whole or not there; damaged ones are named."""

import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import weakref
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_hf
from safetensors import safe_open
from safetensors.torch import save_file

from lit_gpt.convert.readers import open_source
from lit_gpt.errors import UserError
from lit_gpt.files import (
    Spec,
    load_state,
    open_state,
    replace_folder,
    replace_with,
    save_safetensors_shards,
    save_state,
    save_stream,
    spec_of,
    write_text,
)
from lit_gpt.files import tensors as tensors_module
from lit_gpt.files.pickles import load_weights

STATE = {
    "a": torch.randn(7, 5),
    "odd": torch.tensor([True, False, True]),
    "b": torch.randn(33).bfloat16(),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "view": torch.randn(6, 4).t()[1:],
    "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    "c": torch.arange(12, dtype=torch.float16).view(3, 4),
    "d": torch.arange(5),
}
SPECS = {name: spec_of(x) for name, x in STATE.items()}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def same(back: dict[str, torch.Tensor], state: dict[str, torch.Tensor] = STATE) -> bool:
    return all(torch.equal(back[name], x) and back[name].dtype == x.dtype for name, x in state.items())


def read_shards(paths: list[Path]) -> dict[str, torch.Tensor]:
    back = {}
    for path in paths:
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            back |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return back


# ------------------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("mmap", [True, False])
def test_what_was_streamed_is_read_by_torch_bit_for_bit(mmap, tmp_path):
    path = tmp_path / "x.pth"
    specs = {"tied": SPECS["b"], **SPECS}
    save_stream(specs, reversed(STATE.items()), path, {"tied": "b"})
    back = torch.load(path, weights_only=True, mmap=mmap)
    assert list(back) == list(specs) and same(back)
    assert all(x.is_contiguous() and not x.requires_grad and x.device.type == "cpu" for x in back.values())
    assert back["tied"].data_ptr() == back["b"].data_ptr()
    assert all(x.data_ptr() % 64 == 0 for x in back.values() if x.numel())
    assert names(tmp_path) == ["x.pth"]


def test_the_checksums_of_a_streamed_file_are_right(tmp_path):
    save_stream(SPECS, STATE.items(), tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert archive.testzip() is None
        assert sum(entry.file_size for entry in archive.infolist()) > sum(spec.n_bytes for spec in SPECS.values())


def test_a_streamed_file_is_read_one_tensor_at_a_time_or_whole(tmp_path):
    save_stream(SPECS, STATE.items(), tmp_path / "x.pth")
    specs, get = open_state(tmp_path / "x.pth", "again.py")
    assert specs == SPECS and list(specs) == list(SPECS) and same({name: get(name) for name in reversed(specs)})
    assert same(load_state(tmp_path / "x.pth", "again.py"))


@pytest.mark.parametrize("limit, n_files", [(1, len(STATE)), (150, 3), (10**6, 1)])
def test_shards_are_read_by_safetensors_bit_for_bit(limit, n_files, tmp_path):
    paths = save_safetensors_shards(SPECS, reversed(STATE.items()), tmp_path, limit)
    assert len(paths) == n_files and same(read_shards(paths))
    index = tmp_path / "model.safetensors.index.json"
    if n_files == 1:
        assert names(tmp_path) == ["model.safetensors"]
        return
    assert [p.name for p in paths] == [f"model-{i + 1:05d}-of-{n_files:05d}.safetensors" for i in range(n_files)]
    assert names(tmp_path) == sorted([p.name for p in paths] + [index.name])
    saved = json.loads(index.read_text())
    assert saved["metadata"] == {"total_size": sum(spec.n_bytes for spec in SPECS.values())}
    held = {name: path.name for path in paths for name in read_shards([path])}
    assert saved["weight_map"] == held and list(saved["weight_map"]) == list(SPECS)
    for path in paths:
        assert len(held) == len(SPECS) and sum(SPECS[n].n_bytes for n in read_shards([path])) <= max(limit, 140)


def test_every_tensor_of_a_shard_starts_at_a_multiple_of_its_size(tmp_path):
    state = {
        "x": torch.tensor([True]),
        "y": torch.randn(3),
        "z": torch.randn(3).half(),
        "w": torch.tensor([1.0]).double(),
    }
    (path,) = save_safetensors_shards({n: spec_of(x) for n, x in state.items()}, state.items(), tmp_path, 10**6)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert all((8 + size + header[n]["data_offsets"][0]) % x.element_size() == 0 for n, x in state.items())
    assert same(read_shards([path]), state)


def test_transformers_reads_our_shards(tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_hf("llama")
    model.config.save_pretrained(tmp_path)
    state = model.state_dict()
    assert len(save_safetensors_shards({n: spec_of(x) for n, x in state.items()}, state.items(), tmp_path, 20000)) > 1
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict(), state)


def write_stream(specs, tensors, folder):
    save_stream(specs, tensors, folder / "x.pth")


def write_shards(specs, tensors, folder):
    save_safetensors_shards(specs, tensors, folder, 200)


@pytest.mark.parametrize("write", [write_stream, write_shards])
def test_one_tensor_is_held_while_the_next_is_made(write, tmp_path):
    made: list[weakref.ref] = []

    def tensors():
        for name, spec in specs.items():
            assert sum(x() is not None for x in made) <= 1
            x = torch.ones(spec.shape)
            made.append(weakref.ref(x))
            yield name, x
            del x

    specs = {f"x{i}": Spec((50000,), torch.float32) for i in range(9)}
    write(specs, tensors(), tmp_path)
    assert len(made) == 9


@pytest.mark.parametrize("write", [write_stream, write_shards])
@pytest.mark.parametrize(
    "tensors, says",
    [
        ([("a", STATE["a"])], "b did not come"),
        ([("a", STATE["a"]), ("a", STATE["a"])], "a was not announced, or comes twice"),
        ([("other", STATE["a"])], "other was not announced"),
        ([("a", STATE["a"].t())], "announced was"),
        ([("a", STATE["a"].double())], "announced was"),
    ],
)
def test_tensors_other_than_announced_are_our_bug(write, tensors, says, tmp_path):
    with pytest.raises(AssertionError, match=says):
        write({"a": SPECS["a"], "b": SPECS["b"]}, tensors, tmp_path)


# ------------------------------------------------------------------------------------------------- whole or not there


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_what_is_interrupted_leaves_everything_as_it_was(error, tmp_path):
    def tensors():
        yield "a", STATE["a"]
        raise error

    def fill(folder):
        (folder / "half").write_text("half")
        write_shards(SPECS, tensors(), folder)

    (tmp_path / "x.pth").write_text("before")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model").write_text("before")
    with pytest.raises(error):
        save_stream(SPECS, tensors(), tmp_path / "x.pth")
    for folder in ("full", "new"):
        with pytest.raises(error):
            replace_folder(tmp_path / folder, fill, overwrite=True)
    assert names(tmp_path) == ["full", "x.pth"] and names(tmp_path / "full") == ["model"]
    assert (tmp_path / "x.pth").read_text() == (tmp_path / "full" / "model").read_text() == "before"


SLOW = """
import sys, time
from pathlib import Path
import torch
from lit_gpt.files import replace_folder, save_safetensors_shards, save_stream, spec_of
folder, x = Path(sys.argv[1]), torch.ones(100000)
def tensors():
    yield "a", x
    print("begun", flush=True)
    time.sleep(60)
specs = {"a": spec_of(x), "b": spec_of(x)}
if sys.argv[2] == "stream":
    save_stream(specs, tensors(), folder / "target")
else:
    replace_folder(folder / "target", lambda f: save_safetensors_shards(specs, tensors(), f, 10), True)
"""


@pytest.mark.parametrize(
    "kind, number", [("stream", signal.SIGKILL), ("shards", signal.SIGKILL), ("stream", signal.SIGTERM)]
)
def test_what_a_killed_process_left_is_gone_with_the_next_write(kind, number, tmp_path):
    def write(text):
        if kind == "stream":
            write_text(tmp_path / "target", text)
        else:
            replace_folder(tmp_path / "target", lambda f: (f / "x").write_text(text), overwrite=True)

    def read():
        return (tmp_path / "target" / ("" if kind == "stream" else "x")).read_text()

    write("before")
    process = subprocess.Popen([sys.executable, "-c", SLOW, tmp_path, kind], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"begun\n"
        write("while it runs")
        left = f".target.{process.pid}.tmp"
        assert names(tmp_path) == [left, "target"]  # what a living process writes is its own
        os.kill(process.pid, number)
        assert process.wait() == -number
    finally:
        process.kill()
        process.communicate()
    assert names(tmp_path) == [left, "target"] and read() == "while it runs"
    write_text(tmp_path / "other", "")
    assert left in names(tmp_path)  # only the same target cleans up
    write("after")
    assert names(tmp_path) == ["other", "target"] and read() == "after"


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_names_of_temporary_files_are_cleaned_up(dead_pid, tmp_path):
    kept = [f".x[1].{dead_pid}.tmp.old", f".x[1].y.{dead_pid}.tmp", ".x[1].tmp", f".x1.{dead_pid}.tmp", ".x[1]..tmp"]
    for name in (*kept, f".x[1].{dead_pid}.tmp", f".x[1].{os.getpid()}.tmp"):
        (tmp_path / name).write_text("half")
    write_text(tmp_path / "x[1]", "whole")
    assert names(tmp_path) == sorted([*kept, "x[1]"])


def test_a_folder_that_was_moved_aside_when_the_process_died_comes_back(dead_pid, tmp_path):
    aside = tmp_path / f".x.{dead_pid}.old.tmp"
    aside.mkdir()
    (aside / "model").write_text("old")
    with pytest.raises(UserError, match="not empty"):
        replace_folder(tmp_path / "x", lambda folder: None, overwrite=False)
    assert names(tmp_path) == ["x"] and names(tmp_path / "x") == ["model"]


def test_a_folder_is_replaced_only_if_asked(tmp_path, monkeypatch):
    def fill(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "new").write_text("new")

    out = tmp_path / "parent" / "out"
    replace_folder(out, fill, overwrite=False)
    with pytest.raises(UserError, match=r"out is not empty; .*--overwrite true"):
        replace_folder(out, fill, overwrite=False)
    (out / "old").write_text("old")
    replace_folder(out, fill, overwrite=True)
    assert names(out) == ["deep"] and names(out / "deep") == ["new"] and names(out.parent) == ["out"]
    (tmp_path / "empty").mkdir()
    replace_folder(tmp_path / "empty", fill, overwrite=False)
    assert names(tmp_path / "empty") == ["deep"]
    (tmp_path / "link").symlink_to(out)
    replace_folder(tmp_path / "link", fill, overwrite=True)
    assert (tmp_path / "link").is_symlink() and names(out) == ["deep"]
    write_text(tmp_path / "file", "")
    with pytest.raises(UserError, match="is a file"):
        replace_folder(tmp_path / "file", fill, overwrite=True)
    monkeypatch.chdir(out)
    with pytest.raises(UserError, match="current or the home folder"):
        replace_folder(out.parent, fill, overwrite=True)
    assert names(tmp_path) == ["empty", "file", "link", "parent"]


@pytest.mark.parametrize("write", [write_stream, write_shards])
def test_a_full_disk_is_noticed_before_the_work(write, tmp_path):
    def never():
        raise AssertionError("was asked for tensors")
        yield

    with pytest.raises(UserError, match=r"[\d,]+ bytes free, and 17,592,186,044,416 are needed"):
        write({"x": Spec((2**42,), torch.float32)}, never(), tmp_path)
    assert names(tmp_path) == []


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from lit_gpt.errors import UserError
from lit_gpt.files import save_safetensors_shards, save_state, save_stream, spec_of, write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
folder, x = Path(sys.argv[1]), torch.ones(30000)
for write in (
    lambda: save_stream({"x": spec_of(x)}, iter(()), folder / "file"),
    lambda: save_safetensors_shards({"x": spec_of(x)}, iter(()), folder / "new", 10**9),
    lambda: save_state({"x": x}, folder / "file"),
    lambda: write_text(folder / "file", "x" * 100001),
):
    try:
        write()
    except UserError as e:
        assert "could not be written" in str(e) and "\\n" not in str(e), e
    else:
        raise AssertionError(write)
"""


def test_a_file_for_which_there_is_no_room_is_named_and_the_one_before_stays(tmp_path):
    write_text(tmp_path / "file", "before")
    (tmp_path / "new").mkdir()
    subprocess.run([sys.executable, "-c", LIMITED, tmp_path], check=True)
    assert names(tmp_path) == ["file", "new"] and (tmp_path / "file").read_text() == "before"


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 cut"])
def test_a_damaged_state_says_how_to_make_it_again(content, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    for read in (load_state, open_state):
        with pytest.raises(UserError, match=r"x.pth is truncated or damaged \(.*; make it again with again.py"):
            read(tmp_path / "x.pth", "again.py")
    with pytest.raises(UserError, match=r"there is no .*make it with again.py"):
        load_state(tmp_path / "y.pth", "again.py")


def test_files_and_readers_do_not_import_lightning():
    code = "import sys, lit_gpt.files, lit_gpt.convert.readers; assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_planning_a_model_imports_no_compiler():
    code = """
import sys
from lit_gpt.config import Config
from lit_gpt.families import config_for
from lit_gpt.convert.names import lit_shapes
for name in ("tiny-llama-1.1b", "pythia-160m", "Llama-3.2-1B", "Mixtral-8x7B-v0.1", "stablelm-2-12b"):
    lit_shapes(config_for(name, n_layer=2))
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------------------ reading

A, B, C = torch.randn(4, 3), torch.randn(5).bfloat16(), torch.randn(2, 2)
NAMES = {"safetensors": "model-{}-of-2.safetensors", "bin": "pytorch_model-{}-of-2.bin"}
INDEX = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}
KINDS = pytest.mark.parametrize("kind", ["safetensors", "bin"])


def saved(state: object, **how) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, **how)
    return buffer.getvalue()


def save(state, path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        path.write_bytes(saved(state))


def make_source(folder: Path, kind: str, index: dict[str, int] | None = None) -> list[Path]:
    """A folder with {z, b} in its first shard and {c} in its second, and an index if one is given."""
    (folder / "config.json").write_text("{}")
    paths = [folder / NAMES[kind].format(i) for i in (1, 2)]
    save({"z": A, "b": B}, paths[0])
    save({"c": C}, paths[1])
    if index is not None:
        weight_map = {name: NAMES[kind].format(i) for name, i in index.items()}
        (folder / INDEX[kind]).write_text(json.dumps({"weight_map": weight_map}))
    return paths


def assert_refused(folder: Path, *parts: str) -> None:
    with pytest.raises(UserError) as e:
        open_source(folder)
    message = str(e.value)
    assert "\n" not in message and all(part in message for part in parts), message
    assert any(way in message for way in ("download", "get the model", "get it", "leave one")), message


@KINDS
@pytest.mark.parametrize("index", [None, {"z": 1, "b": 1, "c": 2}])
def test_names_come_in_the_order_of_the_files_with_shape_and_dtype(kind, index, tmp_path):
    paths = make_source(tmp_path, kind, index)
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    source = open_source(tmp_path)
    assert source.files == paths and source.config_file == tmp_path / "config.json" and source.hf_config == {}
    assert source.names == ["z", "b", "c"] and list(source.specs) == source.names
    assert source.specs == {"z": spec_of(A), "b": spec_of(B), "c": spec_of(C)}
    assert same({name: source.get(name) for name in ("c", "z", "b", "c")}, {"z": A, "b": B, "c": C})


def mapped_files(folder: Path) -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split()[-1]).name for line in lines if str(folder) in line}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux")
@KINDS
def test_at_most_one_file_is_open(kind, tmp_path):
    paths = make_source(tmp_path, kind)
    source = open_source(tmp_path)
    assert mapped_files(tmp_path) == set()
    for name, path in (("z", paths[0]), ("c", paths[1]), ("b", paths[0])):
        source.get(name)
        assert mapped_files(tmp_path) == {path.name}
    kept = source.get("b")
    source.get("c")
    assert mapped_files(tmp_path) == {p.name for p in paths} and torch.equal(kept, B)


def test_a_mapping_is_made_anew_only_for_what_was_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors_module, "MAPPED_BYTES", 1000)
    state = {f"x{i}": torch.full((100,), float(i)) for i in range(20)}
    opened = []

    def open_file(path):
        opened.append(path)
        state = load_state(path, "")
        return tensors_module.Opened({}, state.__getitem__)

    save_state(state, tmp_path / "x.pth")
    get = tensors_module.OneFileOpen(dict.fromkeys(state, tmp_path / "x.pth"), open_file)
    kept = {name: get(name) for name in state}
    assert len(opened) == 1 and same(kept, state)
    opened.clear()
    get = tensors_module.OneFileOpen(dict.fromkeys(state, tmp_path / "x.pth"), open_file)
    assert all(torch.equal(get(name), x) for name, x in state.items())
    assert len(opened) == 7  # 3 of 400 bytes each are let go before


def test_tensors_of_a_bin_may_be_views_parameters_or_one_level_down(tmp_path):
    base = torch.randn(6, 4)
    state = {"row": base[2], "turned": base.t(), "whole": base, "parameter": torch.nn.Parameter(torch.randn(3))}
    (tmp_path / "config.json").write_text("{}")
    for loaded in (state, {"model": state, "epoch": 3}, {"state_dict": state, "optimizer": {"x": 1}}):
        torch.save(loaded, tmp_path / "pytorch_model.bin")
        source = open_source(tmp_path)
        assert source.names == list(state) and same({n: source.get(n) for n in state}, state)
        assert not source.get("parameter").requires_grad
        save_stream(source.specs, ((n, source.get(n)) for n in source.names), tmp_path / "x.pth")
        assert same(load_state(tmp_path / "x.pth", ""), state)
    for loaded in ({"model": state, "state_dict": state}, {"model": state, "x": base}, {"model": {"x": 1}}, [base]):
        torch.save(loaded, tmp_path / "pytorch_model.bin")
        assert_refused(tmp_path, "pytorch_model.bin holds something else than named tensors")


def test_a_bin_of_before_torch_1_6_is_read(tmp_path):
    paths = make_source(tmp_path, "bin")
    old = {"z": A, "b": B, "row": A[1]}
    paths[0].write_bytes(saved(old, _use_new_zipfile_serialization=False))
    source = open_source(tmp_path)
    assert source.names == ["z", "b", "row", "c"] and source.specs["row"] == spec_of(A[1])
    assert same({name: source.get(name) for name in source.names}, {**old, "c": C})
    whole = paths[0].read_bytes()
    for size in (len(whole) - 10, 60):
        paths[0].write_bytes(whole[:size])
        assert_refused(tmp_path, f"{paths[0]} is truncated or damaged", "delete it and download it again")


@KINDS
@pytest.mark.parametrize("part", [0.999, 0.5, 0.1])
def test_a_truncated_shard_is_named(kind, part, tmp_path):
    paths = make_source(tmp_path, kind)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: int(part * len(whole))])
    assert_refused(tmp_path, f"{paths[1]} is truncated or damaged", "delete it and download it again")


@KINDS
@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html>" + b"x" * 100, "is text, not weights: a web page"),
        (b"Entry not found", "begins with 'Entry not found'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs pointer"),
        (b"\x00\x01\x02\x03garbage" * 50, ""),
    ],
)
def test_a_file_of_something_else_is_named(kind, content, says, tmp_path):
    paths = make_source(tmp_path, kind)
    paths[0].write_bytes(content)
    assert_refused(tmp_path, f"{paths[0]} ", says)


@KINDS
@pytest.mark.parametrize("index", [None, {"z": 1, "b": 1, "c": 2}])
def test_a_missing_shard_is_named(kind, index, tmp_path):
    paths = make_source(tmp_path, kind, index)
    paths[0].unlink()
    assert_refused(tmp_path, f"lacks {paths[0].name} (1 of 2", "run scripts/download.py again")


@KINDS
@pytest.mark.parametrize(
    "index, says",
    [
        ({"z": 1, "b": 1, "c": 2, "d": 2}, "{second} lacks 'd', which {index} lists for it"),
        ({"z": 1, "b": 2, "c": 2}, "{first} holds 'b', which {index} lists for {second}"),
        ({"z": 1, "c": 2}, "{first} holds 'b', which {index} does not list"),
    ],
)
def test_files_that_do_not_hold_what_their_index_says_are_named(kind, index, says, tmp_path):
    make_source(tmp_path, kind, index)
    first, second = (NAMES[kind].format(i) for i in (1, 2))
    assert_refused(tmp_path, says.format(first=first, second=second, index=INDEX[kind]), "download")


@KINDS
@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[]", "holds no JSON object but a list"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": []}', "has no weight_map"),
        ('{"weight_map": {"z": 3}}', "gives 3 as the file of 'z'"),
        ('{"weight_map": {"z": "../x.safetensors"}}', "gives '../x.safetensors' as the file of 'z'"),
    ],
)
def test_a_damaged_index_is_named(kind, text, says, tmp_path):
    make_source(tmp_path, kind)
    (tmp_path / INDEX[kind]).write_text(text)
    with pytest.raises(UserError, match=f"{INDEX[kind]} {re.escape(says)}"):
        open_source(tmp_path)


@KINDS
def test_a_tensor_in_two_files_is_named(kind, tmp_path):
    paths = make_source(tmp_path, kind)
    save({"b": B, "c": C}, paths[1])
    assert_refused(tmp_path, f"{paths[1]} holds 'b', and so does {paths[0].name}")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = make_source(tmp_path, "bin")
    for evil, protocol in (({"x": Evil()}, 2), ({"x": A, "f": print}, 2), ({"x": A, "e": Evil()}, 2 if old else 5)):
        paths[0].write_bytes(saved(evil, _use_new_zipfile_serialization=not old, pickle_protocol=protocol))
        assert_refused(tmp_path, f"{paths[0]} is not a plain file of tensors (it names ", "it could run code")
    paths[0].write_bytes(pickle.dumps(Evil(), protocol=2))
    assert_refused(tmp_path, "it could run code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_refuses_though_it_runs_nothing_is_read(protocol, tmp_path):
    tied = torch.randn(4, 6).bfloat16()
    state = {
        "tied": tied,
        "view": tied[1:3].t(),
        "same": tied,
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "empty": torch.ones(0, 3),
        "scalar": torch.tensor(7),
        "float8": torch.ones(4).to(torch.float8_e4m3fn),
    }
    beside = {"path": Path("a/b"), "args": Namespace(lr=1e-4), "rate": np.float64(0.1), "sizes": {3, 4}, "iter": 5}
    path = tmp_path / "x.pth"
    torch.save({"model": state, **beside}, path, pickle_protocol=protocol)
    got = load_weights(path)
    back = got["model"]
    assert got["iter"] == 5 and got["sizes"] == {3, 4} and back.keys() == state.keys()
    assert all(torch.equal(back[n].float(), x.float()) and back[n].dtype == x.dtype for n, x in state.items())
    assert back["tied"].data_ptr() == back["same"].data_ptr()
    assert back["view"].stride() == state["view"].stride()


def test_a_tensor_that_reaches_beyond_its_record_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(4, 4)}, path, pickle_protocol=5)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    assert records["x/data.pkl"].count(b"K\x04K\x04\x86") == 1
    records["x/data.pkl"] = records["x/data.pkl"].replace(b"K\x04K\x04\x86", b"K\x04K\x08\x86")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="is not within its 16 values"):
        load_weights(path)


def test_tensors_that_we_do_not_read_are_named_by_their_dtype(tmp_path):
    paths = make_source(tmp_path, "bin")
    for x, dtype in ((torch.ones(2).to(torch.complex64), "complex64"), (torch.eye(2).to_sparse(), "sparse_coo")):
        torch.save({"x": x}, paths[0])
        assert_refused(tmp_path, f"{paths[0]}: 'x' is of dtype", dtype, "get the model in one of")
    (tmp_path / "s").mkdir()
    paths = make_source(tmp_path / "s", "safetensors")
    save_file({"x": torch.ones(2).to(torch.float8_e4m3fn)}, paths[0])
    says = f"{tmp_path / 's' / 'config.json'}: the files hold 'x' (float8_e4m3fn [2])"
    assert_refused(tmp_path / "s", says, "quantization_config", "get config.json from where the weights came from")
    save_file({"x": torch.ones(2).to(torch.uint16)}, paths[0])
    assert_refused(tmp_path / "s", f"{paths[0]}: 'x' is of dtype U16", "get the model in one of")


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    assert_refused(tmp_path / "x", "is not a folder")
    with pytest.raises(UserError, match=r"has no weights \(.*\); it holds training_args.bin"):
        open_source(tmp_path)
    save_file({"x": A}, tmp_path / "model.safetensors")
    assert_refused(tmp_path, "has weights but no config.json")


# ------------------------------------------------------------------------------------------------------------- memory

MEASURED = """
import sys
from pathlib import Path
import torch
from lit_gpt.convert.readers import open_source
from lit_gpt.files import open_state, replace_folder, save_safetensors_shards, save_stream
def memory(key):
    lines = [line for line in open("/proc/self/status") if line.startswith(key)]
    return int(lines[0].split()[1]) / 1024
folder, step = Path(sys.argv[1]), sys.argv[2]
before = memory("VmRSS")
def stream(specs, get):
    return ((name, get(name)) for name in specs)
if step == "to lit":
    source = open_source(folder / "hf")
    save_stream(source.specs, stream(source.names, source.get), folder / "lit_model.pth")
else:
    specs, get = open_state(folder / "lit_model.pth", "")
    replace_folder(folder / "back", lambda f: save_safetensors_shards(specs, stream(specs, get), f, 75 * 2**20), False)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux")
def test_conversion_holds_a_part_of_the_model_both_ways(tmp_path):
    specs = {f"x{i}": Spec((1280, 1024), torch.float32) for i in range(60)}
    (tmp_path / "hf").mkdir()
    weights = ((name, torch.full(spec.shape, float(name[1:]))) for name, spec in specs.items())
    paths = save_safetensors_shards(specs, weights, tmp_path / "hf", 75 * 2**20)
    (tmp_path / "hf" / "config.json").write_text("{}")
    grown = {}
    for step in ("to lit", "back"):
        command = [sys.executable, "-c", MEASURED, tmp_path, step]
        grown[step] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown["to lit"] < 75 + 40 and grown["back"] < 128 + 40, grown  # MiB, of 300; a shard has 75
    assert len(paths) == 4 and all(p.read_bytes() == (tmp_path / "back" / p.name).read_bytes() for p in paths)


def test_replace_with_lets_the_writers_own_errors_through(tmp_path):
    def write(path):
        raise RuntimeError("a bug of ours")

    with pytest.raises(RuntimeError, match="a bug of ours"):
        replace_with(tmp_path / "x", write)


def test_what_is_written_is_for_others_to_read_as_far_as_the_umask_lets_them(tmp_path):
    """Also where the writer goes through a temporary file of its own, which only its owner may read."""

    def owners_alone(path: Path) -> None:
        path.touch(mode=0o600)
        path.chmod(0o600)

    def fill(folder: Path) -> None:
        save_file({"x": torch.zeros(1)}, folder / "x.safetensors")
        owners_alone(folder / "x.json")
        (folder / "inner").mkdir(mode=0o700)

    for umask, file, whole in ((0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)):
        before = os.umask(umask)
        try:
            replace_with(tmp_path / "file", owners_alone)
            replace_folder(tmp_path / "folder", fill, overwrite=True)
        finally:
            os.umask(before)
        found = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
        assert found.pop("folder") == found.pop("inner") == whole
        assert found == dict.fromkeys(("file", "x.safetensors", "x.json"), file)
