"""The recipes are settings that a finetune script takes, beside the flags of a user, and do what their headers say."""

import csv
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from lit_gpt.args import TrainArgs
from lit_gpt.cli import parse
from lit_gpt.data import store
from lit_gpt.data.store import IGNORE, Samples
from lit_gpt.families import config_for
from lit_gpt.model import GPT
from lit_gpt.planning import probe
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.training.length import SMALL_DATA, length_of, outlook

RECIPES = sorted((ROOT / "finetune/recipes").glob("*.yaml"))
FOR_A_DEVICE = [path for path in RECIPES if path.stem.endswith(("24gb", "40gb"))]
ALL = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
DEVICE = {"24gb": "rtx4090", "40gb": "a100-40gb"}
"""How the name of a recipe for a device ends -> the device that its header plans for."""
SIZES = {"1b": (0.9, 1.6), "7b": (6.5, 8.1), "13b": (12.5, 15.0)}
"""Size in the name of a recipe -> the parameters that models of it have, in billions."""
ROWS = {"alpaca_libre": (53_230, 2_140), "my": (300, 12)}
"""Data set of a header -> rows to train on and to validate on: Alpaca-Libre's 55,370, and the few hundred of a user."""


@dataclass(frozen=True)
class Header:
    """What the comments at the top of a recipe say."""

    run: list[str]
    """The words of the command that uses it."""
    plan: list[str]
    """The words of the command that plans it."""
    says: str
    """The sentence with the plan's figures."""
    fits: list[str]
    """Other models, as the hub calls them, that fit the same device."""
    text: str


def header_of(path):
    lines = [line[1:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", "")
    run, plan = (shlex.split(command) for command in re.findall(r"^   python (.*)$", text, re.M))
    says = re.search(r"^ (Plan: .*), as this says:$", text, re.M)[1]
    fits = re.search(r"^ Also fits: (.*)$", text, re.M)
    return Header(run, plan, says, fits[1].split(", ") if fits else [], " ".join(text.split()))


def asked(name, *flags):
    """What `main` of a finetune script is given by these flags."""
    spec = spec_from_file_location(f"finetune_{name}", ROOT / f"finetune/{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return parse(module.main, [str(flag) for flag in flags])


def settings(*flags):
    return asked("lora", *flags)


def samples_like_alpaca_libre(n):
    """As many samples as asked for, with the lengths, targets and shared first lines of Alpaca-Libre's rows.

    The table has a hundred rows that stand for 2,977, prepared with a tokenizer of 32,000 tokens.
    """
    with open(ROOT / "tests/alpaca_libre_lengths.csv", encoding="utf-8") as file:
        table = np.array([[int(row[k]) for k in ("shared", "prompt", "answer")] for row in csv.DictReader(file)])
    shared, prompt, answer = table[np.arange(n) % len(table)].T
    lengths = prompt + answer
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    at, row = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths), np.repeat(np.arange(n), lengths)
    ids = np.where(at < shared[row], shared[row] * 100 + at, 5_000 + (7 * row + at) % 20_000)
    return Samples(ids.astype(np.int32), np.where(at < prompt[row], IGNORE, ids).astype(np.int32), offsets)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with the recipes, and the data sets that the commands of their headers name."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(ROOT / "finetune/recipes", place / "finetune/recipes")
    for name, (n_train, n_val) in ROWS.items():
        splits = {"train": samples_like_alpaca_libre(n_train), "val": samples_like_alpaca_libre(n_val)}
        meta = {"checkpoint_dir": "a model's", "tokenizer": "32,000 tokens", "prompt_style": "alpaca"}
        store.save(place / "data" / name, splits, meta | {"samples": {split: len(s) for split, s in splits.items()}})
    return place


@pytest.fixture(scope="module")
def tiny_data(checkpoint, tmp_path_factory):
    """A data set for the tiny checkpoint."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 260, int(n)).tolist() for n in rng.integers(20, 100, 48)]
    rows = [(ids, [IGNORE] * (len(ids) // 2) + ids[len(ids) // 2 :]) for ids in rows]
    splits = {"train": store.stack(rows[:40]), "val": store.stack(rows[40:])}
    meta = {"tokenizer": Tokenizer(checkpoint).fingerprint(), "checkpoint_dir": "tiny", "prompt_style": "plain"}
    folder = tmp_path_factory.mktemp("tiny") / "data"
    store.save(folder, splits, meta | {"samples": {name: len(s) for name, s in splits.items()}})
    return folder


@pytest.fixture
def say(place, monkeypatch, capsys):
    """Runs a script of the project in `place`, as `python` does with these words, and returns what it prints."""

    def say(words):
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", [str(ROOT / words[0]), *map(str, words[1:])])
        try:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        except SystemExit as e:
            pytest.fail(f"{shlex.join(map(str, words))} ended with {e.code}: {capsys.readouterr().err}")
        return capsys.readouterr().out

    return say


def needs(path, *flags):
    """Skip where the recipe needs bitsandbytes, and that is not installed."""
    if any(word in path.read_text(encoding="utf-8") for word in flags):
        pytest.importorskip("bitsandbytes")


def value(words, flag):
    """What stands behind a flag in a command."""
    return words[words.index(flag) + 1]


def n_parameters(name):
    """Of the model of this name."""
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(config_for(name.removeprefix("checkpoints/"))).parameters())


def figures_of(plan):
    """The sentence of a header that says what this plan says."""
    needed, room = re.search(r"  sum +([\d.]+) of ([\d.]+):", plan).groups()
    besides = re.search(r"in the host's memory, besides: (.*)", plan)
    of_host = sum(map(float, re.findall(r"[\d.]+", besides[1]))) if besides else 0.0
    host = f" and {of_host:.1f} GB of the host" if of_host else ""
    hours, minutes, seconds = map(int, re.search(r"(\d+):(\d\d):(\d\d) in all", plan).groups())
    minutes = round(60 * hours + minutes + seconds / 60)
    n_rows = re.search(r"  ([\d,]+) samples = ([\d.]+) epochs", plan)
    rows = round(int(n_rows[1].replace(",", "")) / float(n_rows[2]))
    time = f"{minutes // 60}:{minutes % 60:02} hours for {rows:,} rows"
    return f"Plan: {float(needed):.1f} of {float(room):.1f} GB{host}, {time}"


def assert_runs_well(plan):
    assert re.search(r"of [\d.]+: fits\n", plan), plan
    for warning in ("Risk", "too few to learn", "takes longer than", "goes into validation"):
        assert warning not in plan, plan


@ALL
def test_a_recipe_goes_with_the_flags_of_a_user_who_has_the_last_word(path, tmp_path):
    method = Path(header_of(path).run[0]).stem
    plain = asked(method, "--data_dir", tmp_path, "--checkpoint_dir", tmp_path)
    flags = ("--data_dir", tmp_path, "--checkpoint_dir", tmp_path, "--learning_rate", 1e-6)
    found = asked(method, "--config", path, *flags)
    assert found["data_dir"] == found["checkpoint_dir"] == tmp_path
    assert found["train"].learning_rate == 1e-6
    assert found["train"] != plain["train"] and (method == "full" or found["lora"] != plain["lora"])


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@ALL
def test_a_recipe_starts_a_run_of_a_tiny_model_up_to_its_first_steps(path, checkpoint, tiny_data, say, monkeypatch):
    """--dry_run with the weights there makes the model and the optimizer, and times forward, backward and steps.

    All of it is there on a CPU: weights in 4 bits, and bitsandbytes' optimizers, which have nothing to page there.
    """
    needs(path, "bnb.", "8bit")
    monkeypatch.setattr(probe, "_LEAST_SECONDS", 0.1)  # the figures are not looked at
    run = header_of(path).run
    where = ("--checkpoint_dir", checkpoint, "--data_dir", tiny_data)
    found = asked(Path(run[0]).stem, "--config", path, *where)
    said = say([*run, *where, "--dry_run", "true"])
    assert "forward and backward passes on this machine" in said and "it ends at" in said
    assert f"of {found['train'].batch_size} samples, then --epochs ends the run" in said
    weights = found.get("quantize") or found["precision"]
    assert f"weights in {weights or ''}" in said


@ALL
def test_the_plan_in_the_header_is_what_the_planner_says_and_fits_the_device(path, say):
    needs(path, "bnb.")
    header = header_of(path)
    plan = say(header.plan)
    assert_runs_well(plan)
    assert header.says == figures_of(plan)
    for flag in ("--config", "--checkpoint_dir", "--data_dir"):
        assert value(header.run, flag) == value(header.plan, flag)
    for name in header.fits:
        assert_runs_well(say([*header.plan, "--checkpoint_dir", f"checkpoints/{name}"]))


@pytest.mark.parametrize("path", FOR_A_DEVICE, ids=lambda path: path.stem)
def test_a_recipe_for_a_device_is_what_its_name_says(path):
    method, size, device = path.stem.split("_")
    header = header_of(path)
    script = method.removeprefix("q")
    assert header.run[0] == f"finetune/{script}.py" and header.plan[:3] == ["scripts/plan.py", "--method", script]
    assert value(header.plan, "--config") == f"finetune/recipes/{path.name}"
    assert value(header.plan, "--device") == DEVICE[device]
    found = asked(script, "--config", path)
    assert bool(found.get("quantize")) == (method == "qlora")
    for name in (value(header.plan, "--checkpoint_dir"), *header.fits):
        assert SIZES[size][0] < n_parameters(name) / 1e9 < SIZES[size][1]
    if script == "lora":
        assert all(getattr(found["lora"], f"lora_{name}") for name in ("query", "key", "value", "projection", "mlp"))
    expected = re.search(r"Expect: ([\d,]+) steps of (\d+) samples.* about ([\d,]+) rows", header.text)
    steps, batch, rows = expected.groups()
    length = length_of(found["train"], ROWS["alpaca_libre"][0])
    assert (steps, int(batch)) == (f"{length.n_steps:,}", length.batch_size) and found["train"].epochs == 3
    assert rows == f"{ROWS['alpaca_libre'][0]:,}"


def test_there_are_recipes_for_both_devices_all_methods_and_three_sizes():
    methods, sizes, devices = zip(*(path.stem.split("_") for path in FOR_A_DEVICE), strict=True)
    assert set(methods) == {"lora", "qlora", "full"} and set(sizes) == set(SIZES) and set(devices) == set(DEVICE)
    assert len(FOR_A_DEVICE) == 8


def test_the_table_of_the_documentation_has_the_figures_of_the_headers():
    text = (ROOT / "docs/fit_a_gpu.md").read_text(encoding="utf-8")
    link = r"\[(\w+)\]\(../finetune/recipes/(\w+).yaml\)"
    rows = re.findall(rf"^\| {link} \| `(.*)` \| (.*) \| (.*) \| (.*) \|$", text, re.M)
    headers = [(path.stem, header_of(path)) for path in FOR_A_DEVICE]
    assert sorted(rows) == [
        (name, name, value(h.plan, "--device"), Path(value(h.plan, "--checkpoint_dir")).name, *figures.groups())
        for name, h in headers
        if (figures := re.fullmatch(r"Plan: (.*), (\S+) hours for 53,230 rows", h.says))
    ]


def test_the_samples_that_the_headers_plan_with_are_like_alpaca_libres():
    """Rows, tokens and targets of a part of it stand in docs/prepare_data.md."""
    text = (ROOT / "docs/prepare_data.md").read_text(encoding="utf-8")
    row = re.search(r"^\| alpaca_libre \(a part\) \| ([\d,]+) \| ([\d,]+) / ([\d,]+) \|", text, re.M)
    n_rows, n_tokens, n_targets = (int(n.replace(",", "")) for n in row.groups())
    samples = samples_like_alpaca_libre(1_000)
    assert len(samples.ids) / 1_000 == pytest.approx(n_tokens / n_rows, rel=0.01)
    assert samples.n_targets / 1_000 == pytest.approx(n_targets / n_rows, rel=0.01)


def test_few_rows_get_steps_enough_by_the_recipe_that_is_named_where_they_do_not(tmp_path):
    where = ("--data_dir", tmp_path, "--checkpoint_dir", tmp_path)
    *_, said = outlook(0, length_of(settings(*where, "--epochs", 3)["train"], 300))
    assert said.startswith("8 optimizer steps: too few to learn much; try --batch_size 8") and SMALL_DATA in said
    found = settings("--config", ROOT / SMALL_DATA, *where)
    assert length_of(found["train"], 300).n_steps == 113 and len(list(outlook(0, length_of(found["train"], 300)))) == 1
    lora = found["lora"]
    assert lora.lora_query and lora.lora_key and lora.lora_value and lora.lora_projection and lora.lora_mlp
    assert TrainArgs().batch_size == 128  # the defaults stay those of the starter guide
