"""Submissions of a tiny run, and what it takes to try them."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from chats import save_run_of
from conftest import ROOT
from hub_server import Hub

from lit_gpt.args.submission import RefusalArgs
from lit_gpt.checkpoints.runs import read_run, save_run
from lit_gpt.files import remove
from lit_gpt.submission.manifest import MANIFEST, files_of, sha256_of
from lit_gpt.submission.prepare import prepare_submission

ROWS = [
    {"instruction": f"say {word} {n} times", "input": "", "output": " ".join([word] * n)}
    for word in ("ab", "cd")
    for n in range(1, 12)
]
TRAIN = ("--batch_size", 8, "--epochs", 1, "--learning_rate", 0.01)


def call(script, *flags, cwd):
    """Runs a script in this process, which has imported what it takes, from another folder."""
    argv, folder, environment = sys.argv, Path.cwd(), dict(os.environ)
    sys.argv = [str(ROOT / script), *map(str, flags)]
    os.chdir(cwd)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = argv
        os.chdir(folder)
        os.environ.clear(), os.environ.update(environment)


def submitted_run(checkpoint, folder):
    """Prepares rows.json as data/ and trains out/ on it, as a user does; returns their folder."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.json").write_text("[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]")
    base, data = ("--checkpoint_dir", checkpoint), folder / "data"
    rows = ("--json_path", folder / "rows.json", "--test_split_fraction", 0.2, "--prompt_style", "plain")
    call("scripts/prepare_json.py", *base, *rows, "--destination_path", data, cwd=folder)
    call("finetune/lora.py", *base, "--data_dir", data, "--out_dir", folder / "out", *TRAIN, cwd=folder)
    return folder


def made_run(checkpoint, folder):
    """Writes rows.json and a run out/ that nobody trained, whose record says all that a trained one's does."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(ROWS))
    record = read_run(save_run_of("lora", checkpoint, folder / "out"))
    command = ["scripts/prepare_json.py", "--json_path", str(folder / "rows.json"), "--test_split_fraction", "0.2"]
    data = record.data | {"command": command, "source": str(folder / "rows.json"), "longest": {"train": 48}}
    save_run(replace(record, data=data, training=record.training | {"epochs": 1.0}), folder / "out")
    return folder


def lightened(folder):
    """Leaves of a submission's library only what reads command lines; returns the submission."""
    for path in sorted((folder / "lit-gpt" / "lit_gpt").iterdir()):
        if path.name not in ("__init__.py", "errors.py", "args", "cli", "records"):
            remove(path)
    signed(folder)
    return folder


def copied(folder, target):
    """Returns a copy of a submission whose files are the same ones: `put` replaces them."""
    return shutil.copytree(folder, target, copy_function=os.link)


def put(path, text):
    """Writes a file anew, and leaves alone whatever else is the same file."""
    path.unlink(missing_ok=True)
    path.write_text(text)


def fresh_submission(trained, checkpoint, folder, args):
    """Writes a submission of the run to a folder, and returns that."""
    prepare_submission(trained / "out", checkpoint, folder, args, RefusalArgs())
    return folder


def signed(folder):
    """Makes the manifest of a changed submission fit its files again."""
    path = folder / MANIFEST
    found = json.loads(path.read_text())
    found["files"] = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in files_of(folder)
    }
    put(path, json.dumps(found))


def run_alone(folder, downloaded):
    """Runs train.sh of a submission with its own library, where `downloaded` is what the hub has."""
    files = {f.name: f.read_bytes() for f in Path(downloaded).iterdir() if not f.name.startswith("lit_")}
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    env |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(folder / "lit-gpt")}
    env |= {"HF_HOME": str(folder.parent / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    with Hub() as hub:
        hub.add("org/tiny", files)
        text = (folder / "train.sh").read_text().replace(" --revision abc123", "")  # the hub here has one commit
        (folder / "train.sh").write_text(text)
        command = [shutil.which("bash"), "train.sh"]
        return subprocess.run(
            command, cwd=folder, env=env | {"HF_ENDPOINT": hub.url}, capture_output=True, text=True, timeout=300
        )
