"""What another version wrote is read, or refused by the version's name; never called damaged."""

import json
import re
from dataclasses import asdict

import pytest

from lit_gpt import __version__
from lit_gpt.args import LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.args.folders import CONFIG, RUN
from lit_gpt.args.formats import FORMATS
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, load_finetuned, read_run, save_run, versions
from lit_gpt.config import Config
from lit_gpt.data import store
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.merge.record import MERGED, trained_style
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.progress import RECORD, Progress, position, read_progress, record_digest


def written_run(folder):
    run = Run("lora", asdict(LoRAArgs()), "plain", "base", "digest", {}, asdict(TrainArgs()), versions())
    save_run(run, folder)
    return lambda: read_run(folder)


def written_config(folder):
    Config(n_layer=1).to_json(folder / CONFIG)
    return lambda: Config.from_json(folder / CONFIG)


def written_data(folder):
    samples = store.stack([([1, 2, 3], [-100, 2, 3])])
    meta = {"checkpoint_dir": "x", "tokenizer": "t", "prompt_style": "plain", "samples": {"train": 1, "val": 1}}
    store.save(folder, {"train": samples, "val": samples}, meta)
    return lambda: store.load(folder)[2]


def written_merge(folder):
    (folder / MERGED).write_text(json.dumps({"format_version": 1, "prompt_style": "plain", "runs": []}))
    return lambda: trained_style(folder)


WRITTEN = {RUN: written_run, CONFIG: written_config, store.META: written_data, MERGED: written_merge}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_says_its_format_and_a_later_one_is_refused_by_its_number(name, tmp_path):
    read = WRITTEN[name](tmp_path)
    record = json.loads((tmp_path / name).read_text())
    assert next(iter(record)) == "format_version" and record["format_version"] == FORMATS[name]
    expected = read()
    (tmp_path / name).write_text(json.dumps({k: v for k, v in record.items() if k != "format_version"}))
    assert read() == expected, "as 0.1.0 wrote it"
    later = FORMATS[name] + 1
    (tmp_path / name).write_text(json.dumps(record | {"format_version": later, "much": {"more": 1}}))
    message = f"{tmp_path / name} has format {later}, and lit-gpt {__version__} reads up to {later - 1}; use the"
    with pytest.raises(UserError, match=re.escape(message)):
        read()


def test_every_format_has_its_case_here():
    assert FORMATS.keys() == {*WRITTEN, RECORD}


def test_a_run_says_which_version_wrote_what_this_one_does_not_know(tmp_path):
    read = written_run(tmp_path)
    record = json.loads((tmp_path / RUN).read_text())
    assert record["versions"]["lit_gpt"] == __version__
    record["versions"]["lit_gpt"] = "9.1.0"
    for changed in (record | {"colour": "red"}, record | {"method_args": record["method_args"] | {"colour": "red"}}):
        (tmp_path / RUN).write_text(json.dumps(changed))
        with pytest.raises(UserError, match=rf"written by lit-gpt 9.1.0 and says colour, which lit-gpt {__version__} "):
            read()


def test_a_checkpoint_of_a_later_format_is_not_called_damaged_and_is_not_passed_over(tmp_path, checkpoint):
    fabric = make_fabric("32-true")
    checkpoints = CheckpointStore(tmp_path, "full")
    model, _ = load_base(fabric, checkpoint)
    for step in (1, 2):
        folder = checkpoints.write(model, {}, Progress(step=step))
    record = json.loads((folder / RECORD).read_text())
    assert record["format_version"] == FORMATS[RECORD] and read_progress(folder).step == position(folder)[0] == 2

    older = {k: v for k, v in record.items() if k not in ("format_version", "digest")}  # as 0.1.0 wrote it
    (folder / RECORD).write_text(json.dumps(older | {"digest": record_digest(older)}))
    assert read_progress(folder).step == 2

    later = record | {"format_version": FORMATS[RECORD] + 1, "digest": {"another": "way"}}
    (folder / RECORD).write_text(json.dumps(later))
    for read in (read_progress, position, lambda _: checkpoints.newest(pytest.fail)):
        with pytest.raises(
            UserError, match=rf"format 2, and lit-gpt {__version__} reads up to 1; .* another --out_dir"
        ):
            read(folder)


def test_a_run_of_0_1_0_is_loaded(tmp_path, checkpoint):
    """Its record has neither the format's version nor lit-gpt's own."""
    fabric = make_fabric("32-true")
    model, digest = load_base(fabric, checkpoint)
    model.requires_grad_(True)
    training = asdict(TrainArgs()) | asdict(ValidationArgs())
    run = Run("full", {}, "plain", str(checkpoint), digest, {}, training, versions())
    save_run(run, tmp_path)
    record = json.loads((tmp_path / RUN).read_text())
    del record["format_version"], record["versions"]["lit_gpt"]
    (tmp_path / RUN).write_text(json.dumps(record))
    checkpoints = CheckpointStore(tmp_path, "full")
    checkpoints.write(model, {}, Progress(step=1))
    loaded, read = load_finetuned(fabric, checkpoint, tmp_path)
    assert read.versions.keys() == record["versions"].keys() and loaded.config == model.config
