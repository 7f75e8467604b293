"""A submission is tried as the organizers try it, and the first thing that is wrong with it is named."""

import json

import pytest
from conftest import assert_one_line_error
from script_processes import run as run_script
from submissions import call, copied, fresh_submission, lightened, made_run, put, signed

from lit_gpt.args.submission import CheckArgs, SubmissionArgs
from lit_gpt.errors import UserError
from lit_gpt.submission.check.run import check_submission
from lit_gpt.submission.manifest import MANIFEST


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    return made_run(checkpoint, tmp_path_factory.mktemp("made-up"))


@pytest.fixture(scope="module")
def submission(trained, checkpoint, tmp_path_factory):
    args = SubmissionArgs(base_repo="org/tiny", base_revision="abc123")
    return fresh_submission(trained, checkpoint, tmp_path_factory.mktemp("made") / "submission", args)


@pytest.fixture(scope="module")
def light(submission, tmp_path_factory):
    """The same without most of the library, for what is checked before that is of use."""
    return lightened(copied(submission, tmp_path_factory.mktemp("light") / "submission"))


@pytest.fixture
def copy(light, tmp_path):
    """A copy of that, to be damaged."""
    return copied(light, tmp_path / "copy")


def failure(folder, **args):
    """The lines that were said of a submission, and the one with which its check ended."""
    said = []
    with pytest.raises(UserError) as e:
        check_submission(folder, CheckArgs(**{"builder": "none"} | args), say=said.append)
    assert said[-1].endswith("FAILED") and "\n" not in str(e.value)
    assert str(e.value).startswith(f"{said[-1].split()[0]}: ")
    return str(e.value)


def test_a_submission_of_a_tiny_run_does_all_that_the_challenge_asks(submission, checkpoint, tmp_path, capsys):
    """End to end, on loopback: the steps of its Dockerfile, its own copy of the library, uvicorn, HELM's requests."""
    before = {p: p.stat().st_mtime_ns for p in submission.rglob("*")}
    flags = ("--submission_dir", submission, "--base_dir", checkpoint, "--builder", "none", "--load_requests", 2)
    call("scripts/check_submission.py", *flags, "--device", "rtx4090", cwd=tmp_path)
    told = capsys.readouterr().out
    steps = [line.split()[0] for line in told.splitlines() if not line.startswith((" ", "The"))]
    assert steps == [
        "files",
        "secrets",
        "Dockerfile",
        "training",
        "build",
        "ready",
        "HELM",
        "load",
        "memory",
        "evaluation",
    ]
    assert "these were not:" in told and "stands for it" in told and "FROM pytorch" in told
    assert "13 requests of its client" in told and "of rtx4090 (estimate)" in told
    assert {p: p.stat().st_mtime_ns for p in submission.rglob("*")} == before


DAMAGE = {
    "a file that is gone": (lambda f: (f / "main.py").unlink(), "files: ", "main.py is missing"),
    "a file that was changed": (lambda f: append(f / "train.yaml", "#"), "files: ", "train.yaml is not what"),
    "a file that came later": (lambda f: (f / "more.txt").write_text(""), "files: ", "more.txt is not in manifest"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "files: ", f"has no {MANIFEST}"),
    "a damaged manifest": (lambda f: put(f / MANIFEST, '{"files": 3}'), "files: ", "base is None"),
}
SIGNED = {
    "a token": (lambda f: append(f / "main.py", 'T = "hf_' + "aB3" * 12 + '"'), "secrets: main.py, line", "Hugging"),
    "no FROM": (lambda f: swap(f / "Dockerfile", "FROM ", "LABEL x="), "Dockerfile: ", "does not begin with FROM"),
    "an instruction of no Docker": (lambda f: swap(f / "Dockerfile", "EXPOSE", "EXPOSES"), "Dockerfile: ", "'EXPOSES'"),
    "a copy of what is not there": (
        lambda f: swap(f / "Dockerfile", "COPY run", "COPY ruin"),
        "Dockerfile: ",
        "no ruin",
    ),
    "another port": (lambda f: swap(f / "Dockerfile", '"80"', '"8000"'), "Dockerfile: ", "has not --port 80"),
    "a host of its own": (lambda f: swap(f / "Dockerfile", "0.0.0.0", "127.0.0.1"), "Dockerfile: ", "has not --host"),
    "a second Dockerfile": (lambda f: (f / "data" / "Dockerfile").write_text(""), "Dockerfile: ", "second Dockerfile"),
    "no Dockerfile": (lambda f: (f / "Dockerfile").unlink(), "Dockerfile: ", "has no Dockerfile"),
    "no training image": (lambda f: (f / "Dockerfile.train").unlink(), "training: ", "Dockerfile.train is missing"),
    "no shell script": (lambda f: append(f / "train.sh", "if then"), "training: ", "is no shell script"),
    "an unknown flag": (lambda f: swap(f / "train.sh", "--config", "--confug"), "training: ", "unknown flag --confug"),
    "a wrong value": (
        lambda f: swap(f / "train.yaml", "epochs: 1.0", "epochs: many"),
        "training: ",
        "must be a number",
    ),
    "a script that is gone": (lambda f: gone(f / "lit-gpt/scripts/download.py"), "training: ", "which is not in"),
    "a broken library": (lambda f: append(f / "lit-gpt/lit_gpt/args/data.py", "("), "training: ", "SyntaxError"),
}


def append(path, text):
    put(path, path.read_text() + text + "\n")


def swap(path, old, new):
    assert old in path.read_text()
    put(path, path.read_text().replace(old, new))


def gone(path):
    path.unlink()


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_changed_submission_is_seen_by_its_manifest(copy, kind):
    damage, step, said = DAMAGE[kind]
    damage(copy)
    message = failure(copy)
    assert message.startswith(step) and said in message


@pytest.mark.parametrize("kind", SIGNED)
def test_each_part_that_is_broken_is_named_before_anything_is_built(copy, kind):
    damage, step, said = SIGNED[kind]
    damage(copy)
    signed(copy)
    message = failure(copy)
    assert message.startswith(step) and said in message


def test_a_base_that_is_missing_or_another_is_told_before_anything_is_built(copy, checkpoint):
    """Weights that merging refuses are test_merge.py's, and steps that fail test_submission_parts.py's."""
    swap(copy / "Dockerfile", "COPY constraints.txt ./", "COPY main.py main.py\nRUN python main.py")  # which would fail
    signed(copy)
    assert "pass the converted base as --base_dir" in failure(copy)
    found = json.loads((copy / MANIFEST).read_text())
    put(copy / MANIFEST, json.dumps(found | {"base": found["base"] | {"contents": "another"}}))
    assert "has other weights in lit_model.pth" in failure(copy, base_dir=str(checkpoint))


def test_what_is_no_submission_is_told_in_one_line(tmp_path):
    assert f"has no {MANIFEST}" in failure(tmp_path)
    assert_one_line_error(run_script("scripts/check_submission.py", cwd=tmp_path), "there is no submission")
